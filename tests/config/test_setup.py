"""From the command line to a checked config and an output folder."""

import pytest
from detectron2.engine import default_argument_parser

from rsb_d2 import UserError
from rsb_d2.config.setup import setup
from tests.helpers.catalogs import catalogs_kept
from tests.helpers.runs.sample_run import CONFIG, SMALL


@pytest.fixture(autouse=True)
def nothing_registered():
    """Data sets of these names, which other tests have elsewhere, are not registered."""
    with catalogs_kept("rsb_sample_train", "rsb_sample_val", "other"):
        yield


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


@pytest.mark.parametrize(
    "opts, flags, message",
    [
        (["SOLVER.BASE_LR"], [], "pairs of KEY VALUE"),
        (["MODEL.RPN.HEAD_NAME", "Head"], [], "MODEL.RPN.HEAD_NAME"),
        (["MODEL.WEIGHTS", "no/such.pth"], ["--eval-only"], "MODEL.WEIGHTS: .*no/such.pth"),
        (["DATASETS.COCO_JSON", "[['rsb_sample_train', 'none.json', 'x']]"], [], "none.json"),
    ],
)
def test_a_mistake_leaves_an_earlier_run_as_it_was(
    run_folder, earlier_output, monkeypatch, opts, flags, message
):
    with pytest.raises(UserError, match=message) as e:
        call_setup(run_folder, monkeypatch, *opts, "OUTPUT_DIR", str(earlier_output), flags=flags)
    assert len(str(e.value).splitlines()) == 1
