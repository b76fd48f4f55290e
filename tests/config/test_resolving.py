"""Values that follow from others: filled in, with the reason in one table."""

import os

import pytest
import torch
import yaml
from detectron2 import model_zoo
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser

from rsb_d2 import UserError, add_rsb_config
from rsb_d2.checkpoint import locate
from rsb_d2.config import get_value, load_config, resolve
from rsb_d2.config.resolving import resolve_amp
from rsb_d2.config.setup import setup
from rsb_d2.predictor import load_predict_config
from tests.helpers.catalogs import catalogs_kept
from tests.helpers.data.bad_input import make_little_config
from tests.helpers.paths import CONFIGS
from tests.helpers.runs.programs import parse_tool
from tests.helpers.seeded_run import make_seeded_run
from tests.helpers.zoo_model import ROOT

FPN = ["MODEL.BACKBONE.NAME", "build_timm_fpn_backbone"]
HEADS = ["MODEL.FPN.IN_FEATURES", "['res4']", "MODEL.ROI_HEADS.NAME", "StandardROIHeads"]
R50 = str(ROOT / "COCO-Detection" / "faster_rcnn_R_50_FPN_1x.yaml")
R101 = str(ROOT / "COCO-Detection" / "faster_rcnn_R_101_FPN_3x.yaml")
X101 = str(ROOT / "COCO-Detection" / "faster_rcnn_X_101_32x8d_FPN_3x.yaml")
C4 = str(ROOT / "COCO-Detection" / "faster_rcnn_R_50_C4_1x.yaml")
RGB = ("RGB", [123.675, 116.28, 103.53], [58.395, 57.12, 57.375])


def rows(caplog):
    """The rows of the tables in the log, by key."""
    table = [line.split(maxsplit=1) for line in caplog.text.splitlines() if "." in line[:20]]
    return dict(table)


# ---- a stock YAML with the name of a timm backbone ----


def pixels(cfg):
    return cfg.INPUT.FORMAT, list(cfg.MODEL.PIXEL_MEAN), list(cfg.MODEL.PIXEL_STD)


@pytest.mark.parametrize("path, name", [(R101, "resnet101"), (X101, "resnext101_32x8d")])
def test_name_and_pixels_follow_from_a_stock_yaml(path, name, caplog):
    caplog.set_level("INFO", "rsb_d2")
    cfg = load_config(path, FPN)
    assert cfg.MODEL.TIMM.NAME == name
    assert pixels(cfg) == RGB
    changes = rows(caplog)
    assert f"'{name}'" in changes["MODEL.TIMM.NAME"] and "'FrozenBN'" in changes["MODEL.TIMM.NORM"]
    assert "MODEL.PIXEL_MEAN" in changes
    assert ("STRIDE_IN_1X1 True" in caplog.text) == (path == R101)


def test_pixels_are_those_of_the_weights():
    weights = ["MODEL.WEIGHTS", "timm://inception_v3.tv_in1k", "MODEL.TIMM.NAME", "inception_v3"]
    cfg = load_config(R101, [*FPN, *weights, "MODEL.RESNETS.DEPTH", 50])
    assert pixels(cfg) == ("RGB", [127.5] * 3, [127.5] * 3)


@pytest.mark.parametrize(
    "opts",
    [
        ["INPUT.FORMAT", "RGB"],
        ["MODEL.PIXEL_STD", [2.0, 2.0, 2.0]],
        ["INPUT.FORMAT", "L", "MODEL.PIXEL_MEAN", [100.0], "MODEL.PIXEL_STD", [1.0]],
        ["INPUT.FORMAT", "RGB", "MODEL.PIXEL_MEAN", RGB[1], "MODEL.PIXEL_STD", RGB[2]],
    ],
)
def test_explicit_pixels_stay(opts, caplog):
    caplog.set_level("INFO", "rsb_d2")
    cfg = load_config(R101, [*FPN, *opts])
    assert pixels(cfg) == pixels(load_config(R101, opts))
    assert "PIXEL" not in caplog.text


def test_heads_of_c4_follow():
    cfg = load_config(C4, ["MODEL.BACKBONE.NAME", "build_timm_c4_backbone"])
    assert cfg.MODEL.ROI_HEADS.NAME == "TimmRes5ROIHeads"
    with pytest.raises(UserError, match="write MODEL.BACKBONE.NAME build_timm_c4_backbone"):
        load_config(C4, ["MODEL.BACKBONE.NAME", "build_timm_backbone"])


@pytest.mark.parametrize("path", [R101, C4])
def test_stock_configs_stay_stock(path):
    stock = model_zoo.get_config(path[len(str(ROOT)) + 1 :])
    add_rsb_config(stock)
    assert load_config(path, []) == stock


def test_a_resolved_config_stays_as_it_is(tmp_path, caplog):
    once = load_config(R101, FPN)
    (tmp_path / "config.yaml").write_text(once.dump())
    caplog.clear()
    again = load_config(str(tmp_path / "config.yaml"), [])
    # YAML has no tuples in lists, nor the same list twice.
    assert yaml.safe_load(again.dump()) == yaml.safe_load(once.dump())
    assert not caplog.records


def test_an_explicit_default_counts(tmp_path):
    """DEPTH: 50 stands in the YAML, and it is Detectron2's default."""
    named = [*FPN, "MODEL.TIMM.NAME", "resnet101"]
    with pytest.raises(UserError, match="is resnet101, but MODEL.RESNETS.DEPTH is 50, .*DEPTH 101"):
        load_config(R50, named)
    cfg = load_config(R50, [*named, "MODEL.RESNETS.DEPTH", "101"])
    assert (cfg.MODEL.TIMM.NAME, cfg.MODEL.TIMM.NORM) == ("resnet101", "BN")
    (tmp_path / "own.yaml").write_text(f"_BASE_: {R50}\nMODEL: {{TIMM: {{NAME: resnet101}}}}\n")
    with pytest.raises(UserError, match="is resnet101, but MODEL.RESNETS.DEPTH is 50"):
        load_config(str(tmp_path / "own.yaml"), FPN)
    # Not in the config.yaml of a run, which contains all keys.
    (tmp_path / "config.yaml").write_text(load_config("", named + HEADS).dump())
    assert load_config(str(tmp_path / "config.yaml"), []).MODEL.TIMM.NAME == "resnet101"
    # Nor for an architecture without a depth.
    assert load_config(R50, [*FPN, "MODEL.TIMM.NAME", "convnext_tiny"]).MODEL.RESNETS.DEPTH == 50


def test_an_explicit_norm_counts():
    opts = [*FPN, "MODEL.TIMM.NAME", "seresnet50", "MODEL.RESNETS.NORM", "FrozenBN"]
    assert load_config(R50, opts).MODEL.TIMM.NORM == "FrozenBN"
    with pytest.raises(UserError, match="TIMM.NORM is BN, but MODEL.RESNETS.NORM is FrozenBN"):
        load_config(R50, [*opts, "MODEL.TIMM.NORM", "BN"])


# ---- machine and data ----


@pytest.mark.parametrize("name, on", [("auto", False), ("float16", False), ("bfloat16", True)])
def test_on_the_cpu_only_bfloat16_by_name(name, on):
    cfg = make_little_config("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", name)
    resolve_amp(cfg)
    assert cfg.SOLVER.AMP.ENABLED == on


def test_all_changes_of_a_run_are_in_one_table(little_data, caplog, monkeypatch):
    caplog.set_level("INFO", "rsb_d2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = make_little_config("MODEL.DEVICE", "cuda", "SOLVER.MAX_ITER", "40000")
    cfg.SOLVER.MAX_EPOCHS = 3
    cfg.SOLVER.AMP.ENABLED = True
    resolve(cfg)
    assert (cfg.MODEL.DEVICE, cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.MAX_ITER) == ("cpu", False, 5)
    assert cfg.DATASETS.CLASS_NAMES == ["cat", "dog"] and cfg.DATASETS.CLASS_IDS == [3, 90]
    (table,) = [r.getMessage() for r in caplog.records if "reason" in r.getMessage()]
    lines = {line.split()[0]: line for line in table.splitlines()[1:]}
    assert "'cuda'" in lines["MODEL.DEVICE"] and "torch finds no GPU" in lines["MODEL.DEVICE"]
    assert "3 images an epoch, 2 a batch" in lines["SOLVER.MAX_ITER"]
    assert {"SOLVER.AMP.ENABLED", "DATASETS.CLASS_NAMES", "DATASETS.CLASS_IDS"} <= lines.keys()
    before = cfg.dump()
    resolve(cfg)
    assert cfg.dump() == before


def test_the_default_metric_gives_way_to_the_evaluators_own(little_data):
    with catalogs_kept("labels"):
        DatasetCatalog.register("labels", list)
        MetadataCatalog.get("labels").set(evaluator_type="cityscapes_sem_seg")
        cfg = make_little_config("DATASETS.TEST", "('labels',)", "TEST.EVAL_PERIOD", "1")
        resolve(cfg)
        assert cfg.SOLVER.BEST_METRIC == "sem_seg/IoU"
        cfg.SOLVER.BEST_METRIC = "segm/AP"  # is not the default: left for the check
        resolve(cfg)
        assert cfg.SOLVER.BEST_METRIC == "segm/AP"


# ---- paths that begin with ~ ----


@pytest.fixture
def home(tmp_path, monkeypatch):
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


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


@pytest.mark.parametrize("key, value", KEYS.items())
def test_every_key_with_a_path(home, key, value):
    (home / "a.yaml").write_text("VERSION: 2\n")
    cfg = load_config("~/a.yaml", [key, repr(value), "DATASETS.CLASS_NAMES", "['~', '~/cat']"])
    assert repr(get_value(cfg, key)) == repr(value).replace("~/", f"{home}/")
    assert cfg.DATASETS.CLASS_NAMES == ["~", "~/cat"]


def test_a_run_with_all_of_its_files_below_home(home, sample_data):
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


def test_weights_and_runs_below_home(home):
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
def test_arguments_of_tools(home, tool, words):
    """A shell leaves the ~ of --run=~/p, and of a quoted one, to the program."""
    values = vars(parse_tool(tool, words)).values()
    flat = [v for value in values for v in (value if isinstance(value, list) else [value])]
    assert flat.count(str(home / "p")) == str(words).count("~/p")
    assert not any("~" in str(v) for v in flat)
