"""Paths that begin with ~: in every key, and in every argument of a program."""

import os
import sys

import pytest
from detectron2.config import get_cfg
from detectron2.engine import default_argument_parser

from rsb_d2 import Trainer, UserError, add_rsb_config
from rsb_d2.checkpoint import locate
from rsb_d2.config.loading import load_config
from rsb_d2.config.setup import setup
from rsb_d2.predictor import load_predict_config
from tests.helpers.paths import CONFIGS
from tests.helpers.runs.programs import load_tool
from tests.helpers.runs.scripted_training import make_config
from tests.helpers.seeded_run import make_seeded_run


@pytest.fixture
def home(tmp_path, monkeypatch):
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


# As written, with HOME for the user's folder in what it becomes.
KEYS = {
    "OUTPUT_DIR": "~/runs/a",
    "MODEL.WEIGHTS": "~/w.pth",
    "DATASETS.COCO_JSON": [["~name", "~/a.json", "~/images"]],
    "DATASETS.IMAGE_FOLDER": [["~name", "~/folder"]],
    "DATASETS.TIMM": [["~name", "~hfds/x", "~/root", "~split"]],
    "DATASETS.CACHE": "~/cache",
    "DATASETS.PROPOSAL_FILES_TRAIN": ("~/p.pkl", "~/q.pkl"),
    "DATASETS.PROPOSAL_FILES_TEST": ("~/p.pkl",),
}


def value_of(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


@pytest.mark.parametrize("key, value", KEYS.items())
def test_every_key_that_holds_a_path(home, key, value):
    (home / "a.yaml").write_text("VERSION: 2\n")
    cfg = load_config("~/a.yaml", [key, repr(value)])
    # What is a name of the user's stays as it is.
    assert repr(value_of(cfg, key)) == repr(value).replace("~/", f"{home}/")
    cfg = load_config("", ["DATASETS.CLASS_NAMES", "['~', '~/cat']"])
    assert cfg.DATASETS.CLASS_NAMES == ["~", "~/cat"]


def test_every_path_of_the_config_is_in_the_table_above():
    """No key that looks like a path by its default or its comment is left out."""
    cfg = get_cfg()
    add_rsb_config(cfg)
    words = ("DIR", "FILE", "PATH", "WEIGHTS", "FOLDER", "JSON", "CACHE", "ROOT")
    flat = [f"{n}.{k}" for n in ("DATASETS", "MODEL", "INPUT", "TEST") for k in cfg[n]]
    flat += [k for k in cfg if "." not in k]
    named = {key for key in flat if any(w in key.split(".")[-1] for w in words)}
    assert named - KEYS.keys() <= {"DATASETS.IMAGE_CACHE_GB"}


def test_a_run_with_all_of_its_files_at_home(home, sample_data, monkeypatch):
    for name in ("train", "val", "annotations"):
        (home / name).symlink_to(sample_data / name)
    sets = str([["at_home", "~/annotations/val.json", "~/val"]])
    (home / "config.yaml").write_text(
        f"_BASE_: {CONFIGS / 'frcnn_rsb_sample.yaml'}\nOUTPUT_DIR: ~/runs/a\n"
        f"DATASETS: {{COCO_JSON: {sets}, TRAIN: [at_home], TEST: [at_home]}}\n"
        "MODEL: {DEVICE: cpu, TIMM: {NAME: resnet10t}}\n"
    )
    cfg = setup(default_argument_parser().parse_args(["--config-file", "~/config.yaml"]))
    assert (home / "runs" / "a" / "config.yaml").exists() and not os.path.exists("~")
    assert cfg.OUTPUT_DIR == str(home / "runs" / "a")


def test_a_trainer_of_a_script(home, sample_data):
    cfg = make_config(sample_data)
    cfg.OUTPUT_DIR = "~/runs/b"  # set behind load_config
    cfg.freeze()
    trainer = Trainer(cfg)
    assert trainer.cfg.OUTPUT_DIR == str(home / "runs" / "b") and cfg.OUTPUT_DIR == "~/runs/b"
    assert (home / "runs" / "b").is_dir() and not os.path.exists("~")


def test_weights_and_runs(home):
    make_seeded_run(home / "run", "faster")
    weights = str(home / "run" / "model_final.pth")
    assert locate("~/run/model_final.pth") == locate("file://~/run/model_final.pth") == weights
    assert load_predict_config(run="~/run").MODEL.WEIGHTS == weights
    cfg = load_predict_config(config_file="~/run/config.yaml", weights="~/run/model_final.pth")
    assert cfg.MODEL.WEIGHTS == weights
    with pytest.raises(UserError, match=f"--run: there is no folder {home}/none"):
        load_predict_config(run="~/none")


@pytest.mark.parametrize(
    "tool, words",
    [
        ("browse_data", ["--annotations=~/p", "--images=~/p", "--output=~/p", "--config-file=~/p"]),
        ("report", ["--results=~/p", "--output=~/p", "--annotations=~/p", "--images=~/p"]),
        ("predict", ["~/p", "--run=~/p", "--config-file=~/p", "--weights=~/p", "--output=~/p"]),
        ("export", ["--run=~/p", "--config-file=~/p", "--weights=~/p", "--output=~/p"]),
        ("export", ["--output=~/p", "--images", "~/p", "~/p"]),
        ("convert_data", ["~/p", "~/p", "--output=~/p", "--images", "~/p"]),
        ("miniature", ["--output=~/p"]),
    ],
)
def test_arguments_of_tools(home, monkeypatch, tool, words):
    """A shell leaves the ~ of --run=~/p, and of a quoted one, to the program."""
    monkeypatch.setattr(sys, "argv", [tool, *words])
    values = vars(load_tool(tool).parse_args()).values()
    flat = [v for value in values for v in (value if isinstance(value, list) else [value])]
    assert flat.count(str(home / "p")) == str(words).count("~/p")
    assert not any("~" in str(v) for v in flat)


def test_arguments_of_convert_weights(home, tool):
    status, _, err = tool("convert_weights", "~/none.pth", "~/out.pth", "--to", "timm")
    assert status == 2 and f"{home}/none.pth" in err[-1]
