"""One line for each kind of mistake, before anything is written."""

import errno
import os
import re
import tempfile

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from rsb_d2 import UserError
from rsb_d2.config.checks import check_files, check_values, log_schedule_notes
from rsb_d2.config.validating import check_best_metric
from rsb_d2.evaluation.build import check_tta
from rsb_d2.evaluation.results import best_mode
from rsb_d2.solver.ema import build_average, check_average
from tests.helpers.catalogs import catalogs_kept
from tests.helpers.data.bad_input import (
    MULTI_STEP,
    Case,
    check_stop,
    config_file,
    make_little_config,
    opts,
    remove,
)
from tests.helpers.runs import resumable_run
from tests.helpers.runs.programs import check_line
from tests.helpers.runs.scripted_training import make_config

SGD = ["SOLVER.OPTIMIZER", "SGD"]
FALLING = [*MULTI_STEP, "SOLVER.MAX_ITER", "90", "SOLVER.STEPS", "(60, 30)"]
# The words of the command line, and a regular expression of the error.
WORDS = [
    # Refused by yacs.
    (["SOLVER.BASE_LR", "fast"], "Type mismatch .*fast.* SOLVER.BASE_LR"),
    (["SOLVER.IMS_PER_BATCH", "2.5"], "Type mismatch .*IMS_PER_BATCH"),
    (["SOLVER.BASE_LRR", "1.0"], "SOLVER.BASE_LRR; did you mean .*BASE_LR"),
    # Outside of a range.
    (["SOLVER.BASE_LR", "0.0"], "SOLVER.BASE_LR is 0.0; it must be .*above 0"),
    (["SOLVER.IMS_PER_BATCH", "0"], "IMS_PER_BATCH is 0; .*1 or more"),
    (["SOLVER.MAX_ITER", "-1"], "MAX_ITER is -1; .*1 or more"),
    (["SOLVER.STEPS", "('a',)"], r"STEPS is \('a',\); each value"),
    (["SOLVER.MOMENTUM", "9.0"], "MOMENTUM is 9.0; .*between 0 and 1"),
    (["SOLVER.EARLY_STOP_PATIENCE", "-1"], "EARLY_STOP_PATIENCE is -1; .*0 or more"),
    (["MODEL.RPN.NMS_THRESH", "1.5"], "RPN.NMS_THRESH is 1.5; .*between 0 and 1"),
    (["MODEL.ROI_BOX_HEAD.FC_DIM", "0"], "ROI_BOX_HEAD.FC_DIM is 0; .*1 or more"),
    (["INPUT.MIN_SIZE_TRAIN", "()"], r"MIN_SIZE_TRAIN is \(\); .*lists"),
    (["INPUT.MIN_SIZE_TRAIN", "(-64,)"], "each value .*0 or more"),
    (["SEED", str(2**40)], "SEED is .*below 2.31"),
    (["MODEL.PIXEL_STD", "[0.0, 1.0, 1.0]"], "PIXEL_STD .*above 0"),
    (["MODEL.PIXEL_STD", "[1.0, 1.0]"], "one of each for a channel"),
    # Not one of the choices.
    (["MODEL.DEVICE", "gpu"], "DEVICE is 'gpu'; write cpu or cuda"),
    (["INPUT.RANDOM_FLIP", "both"], "'both'; write horizontal, vertical or none"),
    (["SOLVER.AMP.DTYPE", "bf16"], "'bf16'; write auto, native, bfloat16 or float16"),
    (["SOLVER.BEST_MODE", "highest"], "SOLVER.BEST_MODE is 'highest'; write auto"),
    (["MODEL.META_ARCHITECTURE", "GeneralizedRCNNN"], "'GeneralizedRCNNN'; did you mean Gen"),
    (["MODEL.ROI_HEADS.NAME", "StandardRoIHeads"], "StandardROIHeads"),
    (["MODEL.TIMM.NAME", "resnet15"], "MODEL.TIMM.NAME.*'resnet15'.*did you mean"),
    (["DATALOADER.SAMPLER_TRAIN", "Sampler"], "DATALOADER.SAMPLER_TRAIN"),
    (["TEST.EXPECTED_RESULTS", "['bbox']"], "EXPECTED_RESULTS: 'bbox'"),
    (["INPUT.FORMAT", "BGR"], "INPUT: {FORMAT: RGB}"),
    # Values that do not go together.
    (FALLING, r"STEPS \(60, 30\).*must increase"),
    ([*MULTI_STEP, "SOLVER.STEPS", "(2,)"], r"STEPS \(2,\) .*below MAX_ITER"),
    (["SOLVER.LR_SCHEDULER_NAME", "Cosine"], "Cosine"),
    (["SOLVER.REFERENCE_WORLD_SIZE", "3"], "REFERENCE_WORLD_SIZE is 3"),
    (["SOLVER.NESTEROV", "True", "SOLVER.MOMENTUM", "0.0", *SGD], "NESTEROV"),
    (["MODEL.ANCHOR_GENERATOR.SIZES", "[[32], [64]]"], "SIZES"),
    (["MODEL.RPN.HEAD_NAME", "StandardRPNHeat"], "MODEL.RPN.HEAD_NAME"),
    (["MODEL.CUDA_GRAPHS", "True", "MODEL.DEVICE", "cpu"], "CUDA_GRAPHS is for a GPU, .* is cpu"),
    # Data and weights.
    (["MODEL.ROI_HEADS.NUM_CLASSES", "80"], "NUM_CLASSES.* 2"),
    (["DATASETS.TRAIN", "('mone',)"], "'mone'; did you mean mine"),
    (["DATASETS.TEST", "('min_val',)"], "TEST: .*did you mean mine_val"),
    (["DATASETS.TEST", "('coco_2017_val',)"], "coco_2017_val needs its annotation file at"),
    (["DATASETS.TRAIN", "()"], "DATASETS.TRAIN is empty"),
    (["MODEL.WEIGHTS", "no.pth"], "MODEL.WEIGHTS: there is no file no"),
    (["MODEL.WEIGHTS", "train"], "train is a folder: name the"),
    (["--eval-only", "MODEL.WEIGHTS", "no.pth"], "MODEL.WEIGHTS: there is no file no"),
    (["--eval-only"], "--eval-only needs MODEL.WEIGHTS"),
    (["OUTPUT_DIR", ""], "OUTPUT_DIR is empty"),
    (["OUTPUT_DIR", "val.json/x"], "cannot write to val.json/x"),
]
STOPS = [
    *(Case(" ".join(words)[:60], opts(*words), says) for words, says in WORDS),
    Case("rate NaN", config_file("SOLVER: {BASE_LR: .nan}"), "BASE_LR is nan; .*above 0"),
    Case("test set missing on disk", remove("val.json"), "mine_val: .*no such annotation file"),
    Case("config file missing", lambda d: ["--config-file", "no.yaml"], "there is no file no.yaml"),
    Case("config file that is not YAML", config_file("{"), "bad.yaml: "),
]


@pytest.mark.parametrize("case", STOPS, ids=str)
def test_train_net_stops_before_anything_is_written(case, little_data, train_net):
    check_stop(case, little_data, train_net)


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC])
def test_output_folder_that_cannot_be_written(number, little_data, train_net, monkeypatch):
    def fail(**_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)  # root can write anywhere
    check_line(train_net(), f"OUTPUT_DIR: cannot write to output: {os.strerror(number)}")


def test_steps_beyond_the_end_are_warned_of(little_data, caplog):
    words = [*MULTI_STEP, "SOLVER.STEPS", "(1, 60, 80)", "SOLVER.WARMUP_ITERS", "1000"]
    log_schedule_notes(make_little_config(*words))
    steps, warm_up = [r.getMessage() for r in caplog.records]
    assert re.search(r"STEPS \(1, 60, 80\): .*MAX_ITER 2, .*not lowered at 60, 80", steps)
    assert re.search("WARMUP_ITERS 1000: .*MAX_ITER 2, before .*BASE_LR", warm_up)
    caplog.clear()
    log_schedule_notes(make_little_config(*MULTI_STEP, "SOLVER.STEPS", "(1,)"))
    assert not caplog.records


def test_an_unresolved_home_directory_is_refused(little_data):
    cfg = make_little_config()
    cfg.OUTPUT_DIR = "~/runs"
    with pytest.raises(UserError, match=r"OUTPUT_DIR is ~/runs; .*rsb_d2.config.resolve\(cfg\)"):
        check_values(cfg)


def test_an_image_folder_may_be_a_path(little_data):
    register_coco_instances("by path", {}, str(little_data / "val.json"), little_data / "val")
    cfg = make_little_config("DATASETS.TRAIN", "()", "DATASETS.TEST", "('by path',)")
    check_files(cfg, eval_only=True)
    (little_data / "val").rename(little_data / "moved")
    with pytest.raises(UserError, match="by path needs its image folder at"):
        check_files(cfg, eval_only=True)


# ---- SOLVER.BEST_METRIC ----


@pytest.mark.parametrize(
    "opts, message",
    [
        (["SOLVER.EARLY_STOP_PATIENCE", "2", "TEST.EVAL_PERIOD", "0"], "set TEST.EVAL_PERIOD"),
        (["SOLVER.BEST_METRIC", "bbox/AP5"], "gives no bbox/AP5; did you mean .*bbox/AP50"),
        (["SOLVER.BEST_METRIC", "segm/AP"], "gives no segm/AP"),
        (["SOLVER.BEST_METRIC", "val_total_loss"], "set TEST.VAL_LOSS True"),
        (["DATASETS.TEST", "()", "TEST.VAL_LOSS", "True"], "DATASETS.TEST is empty"),
    ],
)
def test_bad_best_metrics(sample_data, opts, message):
    cfg = make_config(sample_data)
    cfg.merge_from_list(opts)
    with pytest.raises(UserError, match=message) as e:
        check_best_metric(cfg)
    assert len(str(e.value)) < 300


def test_good_best_metrics(sample_data):
    for metric in ("bbox/AP50", "bbox/AP-star", ""):
        check_best_metric(make_config(sample_data, "SOLVER.BEST_METRIC", metric))
    cfg = make_config(sample_data, kind="mask")
    cfg.merge_from_list(["SOLVER.BEST_METRIC", "segm/APs"])
    check_best_metric(cfg)
    (name,) = cfg.DATASETS.TEST
    cfg.DATASETS.TEST = (name, cfg.DATASETS.TRAIN[0])
    with pytest.raises(UserError, match=f"as in {name}/segm/APs"):
        check_best_metric(cfg)
    cfg.SOLVER.BEST_METRIC = f"{name}/segm/APs"
    check_best_metric(cfg)


@pytest.fixture
def two_test_sets(sample_data):
    """A function that returns a config of test sets with the given names."""

    def rename(*names):
        cfg = make_config(sample_data)
        cfg.DATASETS.TEST = names
        for name in names:
            DatasetCatalog.register(name, list)
            MetadataCatalog.get(name).set(evaluator_type="coco", thing_classes=["a", "b"])
        return cfg

    with catalogs_kept():
        yield rename


@pytest.mark.parametrize(
    "metric, mode",
    [
        ("bbox/AP-val_loss", "max"),
        ("val_loss/bbox/AP-total_loss", "max"),
        ("ema/val_loss/bbox/AP", "max"),
        ("val_total_loss", "min"),
        ("ema/val_loss_cls", "min"),
        ("val_cost", "min"),
        ("total_loss", "min"),
    ],
)
def test_best_mode_does_not_depend_on_names_of_classes_and_data_sets(two_test_sets, metric, mode):
    cfg = two_test_sets("loss", "val_loss")
    cfg.SOLVER.BEST_METRIC = metric
    assert best_mode(cfg) == mode
    cfg.SOLVER.BEST_MODE = other = "max" if mode == "min" else "min"
    assert best_mode(cfg) == other


def test_data_sets_whose_metrics_would_collide(two_test_sets):
    cfg = two_test_sets("ema", "val")
    check_average(cfg)
    cfg.MODEL_EMA.ENABLED = True
    for check in (check_average, lambda cfg: build_average(cfg, None)):
        with pytest.raises(UserError, match="DATASETS.TEST: .*ema another name"):
            check(cfg)
    cfg.DATASETS.TEST = ("ema",)  # metrics of a single data set are without its name
    check_average(cfg)

    cfg = two_test_sets("day", "day_TTA")
    with pytest.raises(UserError, match="DATASETS.TEST: .*day_TTA another name"):
        check_tta(cfg)


# ---- --resume ----


@pytest.mark.parametrize(
    "key, value, was",
    [
        ("MODEL.TIMM.NAME", "resnet34", "'resnet10t'"),
        ("SOLVER.IMS_PER_BATCH", "4", "2"),
        ("SEED", "2", "1"),
        ("DATASETS.TRAIN", "('rsb_sample_val',)", "['rsb_sample_train']"),
        ("INPUT.MIN_SIZE_TRAIN", "(64,)", "[64, 72, 80]"),
    ],
)
def test_another_config_is_not_resumed_with(run_folder, kept_run, key, value, was):
    opts = [*("SOLVER.MAX_ITER", "9", "OUTPUT_DIR", str(kept_run)), key, value]
    before = (kept_run / "config.yaml").read_bytes()
    with pytest.raises(UserError) as e:
        resumable_run.make_config(run_folder, *opts, resume=True)
    message = str(e.value)
    assert f"{key} was {was} and is" in message and "\n" not in message
    assert "SOLVER.RESUME_WITH_CHANGES True" in message
    assert (kept_run / "config.yaml").read_bytes() == before


def test_changes_allowed_in_a_resumed_run(run_folder, kept_run, caplog):
    opts = ["SOLVER.MAX_ITER", "20", "SOLVER.STEPS", "(15,)", "OUTPUT_DIR", str(kept_run)]
    resumable_run.make_config(run_folder, *opts, "DATALOADER.NUM_WORKERS", "3", resume=True)
    assert "SOLVER.MAX_ITER was 8 and is 20" in caplog.text
    caplog.clear()
    changed = ["SEED", "2", "SOLVER.RESUME_WITH_CHANGES", "True"]
    cfg = resumable_run.make_config(run_folder, *opts, *changed, resume=True)
    assert cfg.SEED == 2 and "SEED was 1 and is 2" in caplog.text
