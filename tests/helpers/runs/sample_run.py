"""A small run of the sample config on a little sample data that is already there."""

from tests.helpers.paths import ROOT

CONFIG = str(ROOT / "configs" / "frcnn_rsb_sample.yaml")
# A small run of the sample config on a little sample data that is already there.
SMALL = [
    *("MODEL.TIMM.NAME", "resnet10t"),
    *("MODEL.FPN.OUT_CHANNELS", "32"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "32"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"),
    *("SOLVER.IMS_PER_BATCH", "2"),
    *("SOLVER.MAX_ITER", "6"),
    *("SOLVER.CHECKPOINT_PERIOD", "3"),
    *("TEST.EVAL_PERIOD", "3"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)"),
    *("INPUT.MIN_SIZE_TEST", "64"),
]
