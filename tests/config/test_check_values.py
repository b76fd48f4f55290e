"""Values of the config that cannot be, and those that are only unusual."""

import re

import pytest

from tests.helpers.data.bad_input import (
    MULTI_STEP,
    Case,
    check_stop,
    config_file,
    make_little_config,
    opts,
)

STOPS = [
    Case("rate 0", opts("SOLVER.BASE_LR", "0.0"), "SOLVER.BASE_LR is 0.0; it must be .*above 0"),
    Case("rate below 0", opts("SOLVER.BASE_LR", "-0.1"), "BASE_LR is -0.1; .*above 0"),
    Case("rate NaN", config_file("SOLVER: {BASE_LR: .nan}"), "BASE_LR is nan; .*above 0"),
    Case("rate infinite", config_file("SOLVER: {BASE_LR: .inf}"), "BASE_LR is inf; .*above 0"),
    Case("batch 0", opts("SOLVER.IMS_PER_BATCH", "0"), "IMS_PER_BATCH is 0; .*1 or more"),
    Case("batch below 0", opts("SOLVER.IMS_PER_BATCH", "-4"), "IMS_PER_BATCH is -4; .*1 or more"),
    Case("no iterations", opts("SOLVER.MAX_ITER", "0"), "MAX_ITER is 0; .*1 or more"),
    Case("iterations below 0", opts("SOLVER.MAX_ITER", "-1"), "MAX_ITER is -1; .*1 or more"),
    Case(
        "steps that fall",
        opts(*MULTI_STEP, "SOLVER.MAX_ITER", "90", "SOLVER.STEPS", "(60, 30)"),
        r"STEPS \(60, 30\).*must rise",
    ),
    Case(
        "a step at the end",
        opts(*MULTI_STEP, "SOLVER.STEPS", "(2,)"),
        r"STEPS \(2,\) .*below MAX_ITER",
    ),
    Case("steps of texts", opts("SOLVER.STEPS", "('a',)"), r"STEPS is \('a',\); each value"),
    Case("warm-up below 0", opts("SOLVER.WARMUP_ITERS", "-1"), "WARMUP_ITERS is -1; .*0 or more"),
    Case("schedule unknown", opts("SOLVER.LR_SCHEDULER_NAME", "Cosine"), "Cosine"),
    Case("checkpoints every 0", opts("SOLVER.CHECKPOINT_PERIOD", "0"), "PERIOD is 0; .*1 or more"),
    Case("evaluation every -1", opts("TEST.EVAL_PERIOD", "-1"), "EVAL_PERIOD is -1; .*0 or more"),
    Case("momentum 9", opts("SOLVER.MOMENTUM", "9.0"), "MOMENTUM is 9.0; .*between 0 and 1"),
    Case("decay below 0", opts("SOLVER.WEIGHT_DECAY", "-1.0"), "WEIGHT_DECAY is -1.0; .*0 or more"),
    Case("workers -1", opts("DATALOADER.NUM_WORKERS", "-1"), "NUM_WORKERS is -1; .*0 or more"),
    Case("cache -1", opts("DATASETS.IMAGE_CACHE_GB", "-1"), "IMAGE_CACHE_GB is -1; .*0 or"),
    Case("bad images -1", opts("DATALOADER.MAX_BAD_IMAGES", "-1"), "MAX_BAD_IMAGES is -1; .*0 or"),
    Case("threshold 50", opts("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "50.0"), "between 0 and 1"),
    Case("NMS 1.5", opts("MODEL.RPN.NMS_THRESH", "1.5"), "RPN.NMS_THRESH is 1.5; .*between 0"),
    Case("no classes", opts("MODEL.ROI_HEADS.NUM_CLASSES", "0"), "NUM_CLASSES is 0; .*1 or more"),
    Case("no size", opts("INPUT.MIN_SIZE_TRAIN", "()"), r"MIN_SIZE_TRAIN is \(\); .*lists"),
    Case("size below 0", opts("INPUT.MIN_SIZE_TRAIN", "(-64,)"), "each value .*0 or more"),
    Case("flip unknown", opts("INPUT.RANDOM_FLIP", "both"), "'both'; write horizontal or vertical"),
    Case("seed of 40 bits", opts("SEED", str(2**40)), "SEED is .*below 2.31"),
    Case("PIXEL_STD 0", opts("MODEL.PIXEL_STD", "[0.0, 1.0, 1.0]"), "PIXEL_STD .*above 0"),
    Case("PIXEL_STD of two", opts("MODEL.PIXEL_STD", "[1.0, 1.0]"), "one of each for a channel"),
    Case(
        "architecture misspelt",
        opts("MODEL.META_ARCHITECTURE", "GeneralizedRCNNN"),
        "META_ARCHITECTURE is 'GeneralizedRCNNN'; did you mean GeneralizedRCNN",
    ),
    Case("heads misspelt", opts("MODEL.ROI_HEADS.NAME", "StandardRoIHeads"), "StandardROIHeads"),
]


@pytest.mark.parametrize("case", STOPS, ids=str)
def test_train_net_stops_at_once(case, little_data, train_net):
    check_stop(case, little_data, train_net)


def test_steps_beyond_the_end_are_told(little_data, caplog):
    from rsb_d2.config.check_values import check_values

    words = [*MULTI_STEP, "SOLVER.STEPS", "(1, 60, 80)", "SOLVER.WARMUP_ITERS", "1000"]
    check_values(make_little_config(*words), eval_only=False)
    steps, warm_up = [r.getMessage() for r in caplog.records]
    assert re.search(r"STEPS \(1, 60, 80\): .*MAX_ITER 2, .*not lowered at 60, 80", steps)
    assert re.search("WARMUP_ITERS 1000: .*MAX_ITER 2, before .*BASE_LR", warm_up)
    caplog.clear()
    check_values(make_little_config(*words), eval_only=True)
    check_values(make_little_config(*MULTI_STEP, "SOLVER.STEPS", "(1,)"), eval_only=False)
    assert not caplog.records
