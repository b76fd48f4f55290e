"""SOLVER.BEST_METRIC and its kin: a metric that the evaluation gives."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from rsb_d2 import UserError
from rsb_d2.config.check_best_metric import best_mode, check_best_metric
from rsb_d2.evaluation.tta import check_tta
from rsb_d2.solver.ema import build_average, check_average
from tests.helpers.catalogs import catalogs_kept
from tests.helpers.runs.scripted_training import make_config


@pytest.mark.parametrize(
    "opts, message",
    [
        (["SOLVER.BEST_MODE", "highest"], "SOLVER.BEST_MODE is 'highest'; write one of auto"),
        (["SOLVER.EARLY_STOP_PATIENCE", "-1"], "EARLY_STOP_PATIENCE is -1"),
        (["SOLVER.EARLY_STOP_PATIENCE", "2", "TEST.EVAL_PERIOD", "0"], "set TEST.EVAL_PERIOD"),
        (["SOLVER.BEST_METRIC", "bbox/AP5"], "gives no bbox/AP5; did you mean .*bbox/AP50"),
        (["SOLVER.BEST_METRIC", "AP"], "gives no AP; did you mean bbox/AP"),
        (["SOLVER.BEST_METRIC", "segm/AP"], "gives no segm/AP"),
        (["SOLVER.BEST_METRIC", "val_total_loss"], "set TEST.VAL_LOSS True"),
        (["DATASETS.TEST", "()", "TEST.VAL_LOSS", "True"], "DATASETS.TEST is empty"),
    ],
)
def test_mistakes_in_the_keys(sample_data, opts, message):
    cfg = make_config(sample_data)
    cfg.merge_from_list(opts)
    with pytest.raises(UserError, match=message) as e:
        check_best_metric(cfg)
    assert len(str(e.value)) < 300


def test_metrics_that_are_right(sample_data):
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
    """A config of two test sets, and a function that gives them other names."""

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
        ("bbox/AP-blossom", "max"),
        ("bbox/AP-val_loss", "max"),
        ("loss/bbox/AP", "max"),
        ("val_loss/bbox/AP-total_loss", "max"),
        ("ema/val_loss/bbox/AP", "max"),
        ("val_total_loss", "min"),
        ("ema/val_loss_cls", "min"),
        ("val_cost", "min"),
        ("total_loss", "min"),
    ],
)
def test_the_direction_does_not_depend_on_names_of_classes_and_data_sets(
    two_test_sets, metric, mode
):
    cfg = two_test_sets("loss", "val_loss")
    cfg.SOLVER.BEST_METRIC = metric
    assert best_mode(cfg) == mode
    cfg.SOLVER.BEST_MODE = other = "max" if mode == "min" else "min"
    assert best_mode(cfg) == other


@pytest.mark.parametrize(
    "names, metric",
    [
        (("val_day", "val_night"), "val_night/bbox/AP"),
        (("val_day", "val_night"), "val_day/bbox/AP-b"),
        (("day", "day/night"), "day/night/bbox/AP"),
        (("ema", "val"), "ema/bbox/AP"),
    ],
)
def test_data_sets_whose_names_look_like_something_else(two_test_sets, names, metric):
    cfg = two_test_sets(*names)
    cfg.SOLVER.BEST_METRIC = metric
    check_best_metric(cfg)
    assert cfg.SOLVER.BEST_METRIC == metric
    cfg.SOLVER.BEST_METRIC += "5"
    with pytest.raises(UserError, match="gives no bbox/AP"):
        check_best_metric(cfg)


def test_one_data_set_whose_name_looks_like_a_loss(two_test_sets):
    cfg = two_test_sets("val_day")
    cfg.SOLVER.BEST_METRIC = "val_day/bbox/AP"
    with pytest.raises(UserError, match="did you mean bbox/AP"):
        check_best_metric(cfg)


def test_data_sets_whose_metrics_would_have_the_names_of_others(two_test_sets):
    cfg = two_test_sets("ema", "val")
    check_average(cfg)
    cfg.MODEL_EMA.ENABLED = True
    for check in (check_average, lambda cfg: build_average(cfg, None)):
        with pytest.raises(UserError, match="DATASETS.TEST: .*ema another name"):
            check(cfg)
    cfg.DATASETS.TEST = ("ema",)  # whose metrics are without its name
    check_average(cfg)

    cfg = two_test_sets("day", "day_TTA")
    with pytest.raises(UserError, match="DATASETS.TEST: .*day_TTA another name"):
        check_tta(cfg)
