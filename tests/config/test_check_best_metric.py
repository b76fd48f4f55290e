"""SOLVER.BEST_METRIC and its kin: a metric that the evaluation gives."""

import pytest

from rsb_d2 import UserError
from rsb_d2.config.check_best_metric import check_best_metric
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
