"""From the command line to a checked config and an output folder."""

import errno
import logging
import os
import tempfile
from types import SimpleNamespace

import pytest
from detectron2.engine import default_argument_parser

from rsb_d2 import UserError
from rsb_d2.config.setup import setup
from tests.helpers.catalogs import catalogs_kept
from tests.helpers.data.bad_input import Case, check_stop, opts
from tests.helpers.runs.programs import check_line
from tests.helpers.runs.sample_run import CONFIG, SMALL

STOPS = [
    Case("output folder without a name", opts("OUTPUT_DIR", ""), "OUTPUT_DIR is empty"),
    Case("output folder in a file", opts("OUTPUT_DIR", "val.json/x"), "cannot write to val.json/x"),
]


@pytest.mark.parametrize("case", STOPS, ids=str)
def test_train_net_stops_at_once(case, little_data, train_net):
    check_stop(case, little_data, train_net)


@pytest.fixture(autouse=True)
def nothing_registered():
    """Data sets of these names, which other tests have elsewhere, are not registered."""
    with catalogs_kept("rsb_sample_train", "rsb_sample_val", "other"):
        yield


class NoSpace:
    """What the disk says to a file that is opened on it."""

    def __init__(self, number):
        self.number = number

    def __call__(self, *_, **__):
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_an_output_folder_that_takes_nothing(number, little_data, train_net, monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", NoSpace(number))  # as root, one can write
    check_line(train_net(), f"OUTPUT_DIR: cannot write to output: {os.strerror(number)}")


def call_setup(folder, monkeypatch, *opts, config=CONFIG, flags=()):
    monkeypatch.chdir(folder)
    args = default_argument_parser().parse_args(["--config-file", config, *flags, *SMALL, *opts])
    return setup(args)


@pytest.fixture
def earlier_output(run_folder):
    """The output of an earlier run, which a mistake must leave as it was."""
    output = run_folder / "earlier"
    output.mkdir(exist_ok=True)
    (output / "config.yaml").write_text("an earlier run's")
    yield output
    assert [p.name for p in output.iterdir()] == ["config.yaml"]
    assert (output / "config.yaml").read_text() == "an earlier run's"


SAMPLE = "datasets/rsb_sample"


@pytest.mark.parametrize(
    "opts, flags, message",
    [
        (["MODEL.TIMM.NAME", "resnet15"], [], "MODEL.TIMM.NAME.*'resnet15'.*did you mean"),
        (["MODEL.TIMM.NAME", "3"], [], "MODEL.TIMM.NAME"),
        (["SOLVER.BASE_LR", "fast"], [], "SOLVER.BASE_LR"),
        (["SOLVER.BASE_LR"], [], "pairs of KEY VALUE"),
        (["INPUT.FORMAT", "BGR"], [], "INPUT: {FORMAT: RGB}"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", "80"], [], "NUM_CLASSES.*4"),
        (["MODEL.WEIGHTS", "no/such/model.pth"], [], "MODEL.WEIGHTS: .*no/such/model.pth"),
        (["MODEL.WEIGHTS", "no/such.pth"], ["--eval-only"], "MODEL.WEIGHTS: .*no/such.pth"),
        ([], ["--eval-only"], "--eval-only needs MODEL.WEIGHTS"),
        (["DATASETS.TRAIN", "('coco_2017_trian',)"], [], "coco_2017_trian.*coco_2017_train"),
        (["DATASETS.TRAIN", "()"], [], "DATASETS.TRAIN is empty"),
        (
            ["DATASETS.COCO_JSON", f"[['rsb_sample_train', '{SAMPLE}/none.json', '{SAMPLE}']]"],
            [],
            "none.json",
        ),
        (
            [
                "DATASETS.COCO_JSON",
                f"[['other', '{SAMPLE}/annotations/val.json', '{SAMPLE}/train']]",
                *("DATASETS.TRAIN", "('other',)", "DATASETS.TEST", "('other',)"),
                *("MODEL.ROI_HEADS.NUM_CLASSES", "4"),
            ],
            [],
            None,
        ),
    ],
)
def test_mistakes_stop_before_anything_is_written(
    run_folder, earlier_output, monkeypatch, opts, flags, message
):
    if message is None:  # val's annotations in an emptied image folder
        wrong = run_folder / "wrong_folder"
        wrong.mkdir()
        opts = [o.replace(f"{SAMPLE}/train", "wrong_folder") for o in opts]
        message = "wrong_folder"
    with pytest.raises(UserError, match=message) as e:
        call_setup(run_folder, monkeypatch, *opts, "OUTPUT_DIR", str(earlier_output), flags=flags)
    assert len(str(e.value).splitlines()) <= 3


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "there is no file"),
        ("MODEL: [", "bad.yaml: .*"),
        ("MODEL:\n  BACKBON: {}\n", "MODEL.BACKBON"),
        ("- 1\n", "bad.yaml: .*KEY: value"),
    ],
)
def test_mistakes_in_the_config_file(run_folder, monkeypatch, tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message) as e:
        call_setup(run_folder, monkeypatch, config=str(path))
    assert len(str(e.value).splitlines()) == 1


def test_output_dir_that_cannot_be_written(run_folder, monkeypatch):
    (run_folder / "a_file").write_text("")
    with pytest.raises(UserError, match="OUTPUT_DIR: cannot write to a_file/output"):
        call_setup(run_folder, monkeypatch, "OUTPUT_DIR", "a_file/output")


def test_a_log_on_a_full_disk_says_nothing_about_it(run_folder, monkeypatch, tmp_path, capfd):
    call_setup(run_folder, monkeypatch, "OUTPUT_DIR", str(tmp_path))
    assert logging.raiseExceptions  # for everybody else's logs
    for name in ("rsb_d2", "detectron2"):
        handlers = logging.getLogger(name).handlers
        files = [h for h in handlers if getattr(h.stream, "name", "").startswith(str(tmp_path))]
        assert files
        for handler in files:
            monkeypatch.setattr(handler, "stream", SimpleNamespace(write=NoSpace(errno.ENOSPC)))
            handler.handle(logging.makeLogRecord({"msg": "not written"}))
            assert "Logging error" not in capfd.readouterr().err
            handler.handle(logging.makeLogRecord({"msg": "%d", "args": ("a mistake",)}))
            assert "Logging error" in capfd.readouterr().err
            logging.getLogger(name).removeHandler(handler)
