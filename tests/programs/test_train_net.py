"""train_net.py as a program: train, resume, evaluate, and what it says to mistakes."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser

from rsb_d2 import UserError
from rsb_d2.config.setup import setup
from rsb_d2.data.sample import make_sample_data
from tests.helpers.paths import ROOT

CONFIG = str(ROOT / "configs" / "frcnn_rsb_sample.yaml")
# A small run of the sample config on a little sample data that is already there.
SMALL = [
    *("DATASETS.SAMPLE_DATA", ""),
    *("MODEL.TIMM.NAME", "resnet18"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"),
    *("SOLVER.IMS_PER_BATCH", "2"),
    *("SOLVER.MAX_ITER", "6"),
    *("SOLVER.CHECKPOINT_PERIOD", "3"),
    *("TEST.EVAL_PERIOD", "3"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)"),
    *("INPUT.MIN_SIZE_TEST", "64"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    make_sample_data(str(folder / "datasets" / "rsb_sample"), num_train=8, num_val=4)
    return folder


def run(folder, *arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "train_net.py"), "--config-file", CONFIG, *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def read_metrics(output):
    return [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(folder):
    """A run of three iterations that was resumed up to six."""
    output = folder / "output"
    first = run(folder, *SMALL, "SOLVER.MAX_ITER", "3", "OUTPUT_DIR", str(output))
    assert first.returncode == 0, first.stderr
    at_3 = torch.load(output / "model_final.pth", weights_only=True)
    second = run(folder, "--resume", *SMALL, "OUTPUT_DIR", str(output))
    assert second.returncode == 0, second.stderr
    return output, at_3, first.stdout, second.stdout


def test_train_writes_what_detectron2_writes_and_the_pictures(trained):
    output, _, first, _ = trained
    names = {p.name for p in output.iterdir()}
    assert {"config.yaml", "log.txt", "metrics.json", "model_final.pth", "last_checkpoint"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert {"curves.png", "detections.png"} <= names
    assert "MODEL.DEVICE is cuda, but torch finds no GPU" in first or torch.cuda.is_available()
    assert "Pictures: " in first and re.search(r"\| +AP +\| +AP50 +\|", first)
    assert json.loads((output / "inference" / "coco_instances_results.json").read_text())


def test_resume_goes_on_where_the_run_stopped(trained):
    output, at_3, _, second = trained
    assert "Starting training from iteration 3" in second
    at_6 = torch.load(output / "model_final.pth", weights_only=True)
    assert (at_3["iteration"], at_6["iteration"]) == (2, 5)
    steps = {int(s["step"]) for s in at_6["trainer"]["_trainer"]["optimizer"]["state"].values()}
    assert steps == {6}  # the optimizer went on, too
    assert any(not torch.equal(at_3["model"][k], v) for k, v in at_6["model"].items())
    assert [m["iteration"] for m in read_metrics(output) if "bbox/AP" in m] == [3, 6]


def test_the_same_seed_gives_the_same_weights(folder, trained):
    _, at_3, *_ = trained
    again = folder / "again"
    opts = ["SOLVER.MAX_ITER", "3", "TEST.EVAL_PERIOD", "0", "OUTPUT_DIR", str(again)]
    assert run(folder, *SMALL, *opts).returncode == 0
    weights = torch.load(again / "model_final.pth", weights_only=True)["model"]
    assert all(torch.equal(at_3["model"][k], v) for k, v in weights.items())


def evaluate(folder, trained, name, *opts):
    """Detections of ``--eval-only`` and of the training's own last evaluation, as bytes."""
    output, *_ = trained
    weights = str(output / "model_final.pth")
    result = run(
        folder,
        *("--eval-only", "MODEL.WEIGHTS", weights, *SMALL, *opts),
        *("OUTPUT_DIR", str(folder / name)),
    )
    assert result.returncode == 0, result.stderr
    predictions = "inference/coco_instances_results.json"
    return [(folder_ / predictions).read_bytes() for folder_ in (folder / name, output)]


def test_eval_only_gives_the_same_ap(folder, trained):
    found, expected = evaluate(folder, trained, "evaluation", "TEST.OPTIMIZE", "False")
    assert found == expected


def test_eval_only_with_the_optimized_model_gives_the_same_detections(folder, trained):
    found, expected = map(json.loads, evaluate(folder, trained, "optimized"))
    assert len(found) == len(expected) > 100
    # A model of six iterations has many scores that are nearly equal, so their order may differ.
    as_rows = [
        np.array(
            [[d["image_id"] * 1e4, d["category_id"] * 1e4, *d["bbox"], d["score"]] for d in ds]
        )
        for ds in (found, expected)
    ]
    distance = np.abs(as_rows[0][:, None] - as_rows[1][None]).max(axis=2)
    assert np.mean(distance.min(axis=0) < 0.01) > 0.99


def test_a_mistake_on_the_command_line_says_so_in_a_line(folder):
    result = run(folder, *SMALL, "MODEL.TIMM.NAMES", "resnet18", "OUTPUT_DIR", str(folder / "none"))
    assert result.returncode not in (0, None)
    assert "Traceback" not in result.stderr
    assert "MODEL.TIMM.NAMES; did you mean MODEL.TIMM.NAME" in result.stderr
    assert len(result.stderr.strip().splitlines()[-1]) < 300
    assert not (folder / "none").exists()


@pytest.fixture(autouse=True)
def nothing_registered():
    """Data sets of these names, which other tests have elsewhere, are not registered."""
    for name in ("rsb_sample_train", "rsb_sample_val", "other"):
        for catalog in (DatasetCatalog, MetadataCatalog):
            if name in catalog:
                catalog.remove(name)


def call_setup(folder, monkeypatch, *opts, config=CONFIG, flags=()):
    monkeypatch.chdir(folder)
    args = default_argument_parser().parse_args(["--config-file", config, *flags, *SMALL, *opts])
    return setup(args)


@pytest.fixture
def earlier_output(folder):
    """The output of an earlier run, which a mistake must leave as it was."""
    output = folder / "earlier"
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
    folder, earlier_output, monkeypatch, opts, flags, message
):
    if message is None:  # val's annotations in an emptied image folder
        wrong = folder / "wrong_folder"
        wrong.mkdir()
        opts = [o.replace(f"{SAMPLE}/train", "wrong_folder") for o in opts]
        message = "wrong_folder"
    with pytest.raises(UserError, match=message) as e:
        call_setup(folder, monkeypatch, *opts, "OUTPUT_DIR", str(earlier_output), flags=flags)
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
def test_mistakes_in_the_config_file(folder, monkeypatch, tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message) as e:
        call_setup(folder, monkeypatch, config=str(path))
    assert len(str(e.value).splitlines()) == 1


def test_output_dir_that_cannot_be_written(folder, monkeypatch):
    (folder / "a_file").write_text("")
    with pytest.raises(UserError, match="OUTPUT_DIR: cannot write to a_file/output"):
        call_setup(folder, monkeypatch, "OUTPUT_DIR", "a_file/output")


def test_sample_data_is_made_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = default_argument_parser().parse_args(["--config-file", CONFIG])
    cfg = setup(args)
    assert sorted(os.listdir("datasets/rsb_sample")) == [
        "annotations",
        "sample.json",
        "train",
        "val",
    ]
    assert cfg.is_frozen()
    shutil.rmtree("datasets")
