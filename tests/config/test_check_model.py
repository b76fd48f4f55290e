"""The model of a config, built and tried before anything is written."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from rsb_d2 import Trainer, UserError, add_rsb_config
from rsb_d2.config.loading import load_config
from rsb_d2.engine.tasks import check_config, get_task
from tests.helpers.data.bad_input import Case, check_stop, opts
from tests.helpers.paths import ROOT


def check_model(cfg, eval_only=False):
    get_task(cfg).check_model(cfg, eval_only)


SGD = ["SOLVER.OPTIMIZER", "SGD"]
STOPS = [
    Case("sizes of two levels", opts("MODEL.ANCHOR_GENERATOR.SIZES", "[[32], [64]]"), "SIZES"),
    Case("head of the RPN", opts("MODEL.RPN.HEAD_NAME", "StandardRPNHeat"), "MODEL.RPN.HEAD_NAME"),
    Case("batch of the processes", opts("SOLVER.REFERENCE_WORLD_SIZE", "3"), "REFERENCE_WORLD"),
    Case("expected results", opts("TEST.EXPECTED_RESULTS", "['bbox']"), "EXPECTED_RESULTS: 'bbox'"),
    Case("nesterov", opts("SOLVER.NESTEROV", "True", "SOLVER.MOMENTUM", "0.0", *SGD), "NESTEROV"),
    Case("format", opts("INPUT.FORMAT", "RBG"), "INPUT.FORMAT is 'RBG'; write BGR or RGB"),
    Case("sampler", opts("DATALOADER.SAMPLER_TRAIN", "Sampler"), "DATALOADER.SAMPLER_TRAIN"),
]
# Of the sample config or another one: the key, a value that Detectron2 does not refuse before it
# builds the model or trains, and, where it is not the key, what the line has in it.
BAD = [
    ("MODEL.ANCHOR_GENERATOR.SIZES", "[[32], [64], [128]]", "number of input features is 5"),
    ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[1.0], [2.0]]", ""),
    ("MODEL.ANCHOR_GENERATOR.OFFSET", "1.5", ""),
    ("MODEL.FPN.FUSE_TYPE", "mean", ""),
    ("MODEL.FPN.NORM", "BatchNorm", ""),
    ("MODEL.FPN.OUT_CHANNELS", "0", ""),
    ("MODEL.RPN.IN_FEATURES", "['p2', 'p3']", ""),
    ("MODEL.RPN.IN_FEATURES", "['p2', 'p7']", "has no p7"),
    ("MODEL.RPN.BBOX_REG_LOSS_TYPE", "l2", ""),
    ("MODEL.RPN.BBOX_REG_WEIGHTS", "(1.0, 1.0)", ""),
    ("MODEL.RPN.CONV_DIMS", "[-1, 0]", ""),
    ("MODEL.RPN.IOU_LABELS", "[0, 1]", ""),
    ("MODEL.RPN.IOU_THRESHOLDS", "[0.7, 0.3]", ""),
    ("MODEL.ROI_HEADS.IOU_LABELS", "[0, 2]", ""),
    ("MODEL.ROI_HEADS.IN_FEATURES", "[]", ""),
    ("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", "(10.0, 10.0, 5.0)", ""),
    ("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "huber", ""),
    ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignV3", ""),
    ("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "0", ""),
    ("MODEL.ROI_BOX_HEAD.NUM_FC", "0", ""),
    ("MODEL.ROI_BOX_HEAD.NORM", "Batch", ""),
    ("MODEL.TIMM.NAME", "inception_v3", ""),
]
BAD_NORM = ["MODEL.ROI_BOX_HEAD.NUM_CONV", "1"]
MASK = [
    ("MODEL.ROI_MASK_HEAD.NORM", "Batch", ""),
    ("MODEL.ROI_MASK_HEAD.POOLER_TYPE", "Pool", ""),
    ("MODEL.ROI_MASK_HEAD.CONV_DIM", "0", ""),
    ("MODEL.ROI_BOX_CASCADE_HEAD.IOUS", "(0.5, 0.6)", ""),
    ("MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS", "((1.0, 1.0, 1.0, 1.0),)", ""),
]
RETINANET = [
    ("MODEL.RETINANET.IN_FEATURES", "['p3', 'p4']", ""),
    ("MODEL.RETINANET.PRIOR_PROB", "1.0", ""),
    ("MODEL.RETINANET.IOU_LABELS", "[0, 1]", ""),
    ("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "l2", ""),
    ("MODEL.RETINANET.BBOX_REG_WEIGHTS", "(1.0,)", ""),
    ("MODEL.RETINANET.NORM", "Batch", ""),
]
PANOPTIC = [
    ("MODEL.SEM_SEG_HEAD.NORM", "Batch", ""),
    ("MODEL.SEM_SEG_HEAD.COMMON_STRIDE", "0", ""),
    ("MODEL.SEM_SEG_HEAD.IN_FEATURES", "['p9']", "has no p9"),
    ("MODEL.SEM_SEG_HEAD.IN_FEATURES", "['p2', 'p9']", "has no p9"),
]
ALL = [
    *(("frcnn_rsb_1x", *row) for row in BAD),
    *(("cascade_mask_rcnn_rsb_1x", *row) for row in MASK),
    *(("retinanet_rsb_1x", *row) for row in RETINANET),
    *(("panoptic_fpn_rsb_1x", *row) for row in PANOPTIC),
]


@pytest.mark.parametrize("case", STOPS, ids=str)
def test_train_net_stops_at_once(case, little_data, train_net):
    check_stop(case, little_data, train_net)


def make_config(name, *words):
    path = str(ROOT / "configs" / f"{name}.yaml")
    small = ["MODEL.TIMM.NAME", "resnet10t", "MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"]
    small += ["MODEL.FPN.OUT_CHANNELS", "32", "MODEL.ROI_BOX_HEAD.FC_DIM", "32"]
    return load_config(path, [*small, *words])


@pytest.mark.parametrize("config, key, value, says", ALL)
def test_what_detectron2_would_stop_at_is_one_line(config, key, value, says):
    words = BAD_NORM if key.endswith("BOX_HEAD.NORM") else []
    with pytest.raises(UserError) as e:
        check_config(make_config(config, *words, key, value))
    message = str(e.value)
    assert key in message and says in message
    assert "\n" not in message and len(message) < 1000


GOOD = [
    *("frcnn_rsb_1x", "cascade_mask_rcnn_rsb_1x", "retinanet_rsb_1x", "panoptic_fpn_rsb_1x"),
    "pretrain/resnet50_rsb_a2",
]


@pytest.mark.parametrize("name", GOOD)
def test_nothing_is_left_of_a_check(name):
    """The config, the random state and whatever else a model may have touched are as before."""
    cfg = make_config(name) if "pretrain" not in name else load_pretraining(name)
    cfg.freeze()
    before, state = cfg.dump(), torch.get_rng_state()
    check_model(cfg, eval_only=False)
    check_model(cfg, eval_only=True)
    assert cfg.dump() == before and torch.equal(torch.get_rng_state(), state)


def load_pretraining(name, *words):
    path = str(ROOT / "configs" / f"{name}.yaml")
    return load_config(path, ["MODEL.TIMM.NAME", "resnet10t", "MODEL.DEVICE", "cpu", *words])


def test_a_classifier_is_tried_in_both_sizes():
    """visformer takes one size only: 224."""
    words = ["MODEL.TIMM.NAME", "visformer_tiny", "INPUT.CLASSIFIER.TEST_SIZE", "224"]
    train_size = "INPUT.CLASSIFIER.TRAIN_SIZE"
    name = "pretrain/resnet50_rsb_a2"
    check_model(load_pretraining(name, *words, train_size, "224"))
    with pytest.raises(UserError, match="INPUT.CLASSIFIER.TRAIN_SIZE 160"):
        check_model(load_pretraining(name, *words, train_size, "160"))
    check_model(load_pretraining(name, *words, train_size, "160"), eval_only=True)


def test_keypoints_bitmasks_and_proposals_are_tried():
    keypoints = ["MODEL.KEYPOINT_ON", "True", "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", "5"]
    check_model(make_config("mask_rcnn_rsb_1x", *keypoints, "INPUT.MASK_FORMAT", "bitmask"))
    with pytest.raises(UserError, match="MODEL.ROI_KEYPOINT_HEAD.POOLER_TYPE"):
        check_model(make_config("frcnn_rsb_1x", *keypoints, *BAD_KEYPOINT))
    given = [
        "MODEL.PROPOSAL_GENERATOR.NAME",
        "PrecomputedProposals",
        "MODEL.LOAD_PROPOSALS",
        "True",
    ]
    check_model(make_config("frcnn_rsb_1x", *given))


BAD_KEYPOINT = ["MODEL.ROI_KEYPOINT_HEAD.POOLER_TYPE", "Pool"]


@pytest.mark.parametrize("norm", ["SyncBN", "BN", "GN", ""])
def test_norms_that_train_elsewhere(norm):
    check_model(make_config("frcnn_rsb_1x", "MODEL.FPN.NORM", norm))


class NeedsMore(nn.Module):
    """A model of somebody else's, which learns from what this project does not know."""

    def __init__(self, cfg):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, batch):
        return {"loss": self.layer(batch[0]["theirs"])}


def test_models_of_others_are_built_and_not_judged():
    cfg = make_config("frcnn_rsb_1x")
    META_ARCH_REGISTRY._do_register("NeedsMore", NeedsMore)
    try:
        cfg.MODEL.META_ARCHITECTURE = "NeedsMore"
        check_model(cfg)
    finally:
        del META_ARCH_REGISTRY._obj_map["NeedsMore"]


def test_stock_models_are_tried_too():
    cfg = get_cfg()
    add_rsb_config(cfg)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", 18])
    cfg.merge_from_list(["MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.ROI_HEADS.NUM_CLASSES", 2])
    check_model(cfg)
    cfg.MODEL.RPN.BBOX_REG_LOSS_TYPE = "l2"
    with pytest.raises(UserError, match="MODEL.RPN.BBOX_REG_LOSS_TYPE 'l2'"):
        check_model(cfg)


# ---- a script without setup ----


def script_config(tmp_path, *words):
    cfg = get_cfg()
    add_rsb_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs" / "frcnn_rsb_sample.yaml"))
    cfg.merge_from_list(["MODEL.TIMM.NAME", "resnet10t", "MODEL.DEVICE", "cpu"])
    cfg.merge_from_list(["OUTPUT_DIR", str(tmp_path / "output"), *words])
    return cfg


@pytest.mark.parametrize(
    "key, value",
    [
        ("SOLVER.STEPS", None),
        ("SOLVER.BASE_LR", -1.0),
        ("SOLVER.OPTIMIZER", "Adam"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64]]),
        ("MODEL.TIMM.NAME", "inception_v3"),
        ("MODEL.ROI_HEADS.NAME", "Res5ROIHeads"),
        ("INPUT.FORMAT", "BGR"),
        ("SOLVER.REFERENCE_WORLD_SIZE", 3),
        ("TEST.EXPECTED_RESULTS", [["bbox/AP", 38.5, 0.2]]),
    ],
)
def test_a_script_gets_the_same_line(key, value, tmp_path):
    cfg = script_config(tmp_path, key, value)
    with pytest.raises(UserError, match=key) as e:
        Trainer(cfg)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("name", ["build_model", "build_optimizer", "build_lr_scheduler"])
def test_what_a_subclass_builds_is_not_judged(name, tmp_path):
    class Own(Trainer):
        pass

    def build(cls, *_):
        raise NotImplementedError(name)

    setattr(Own, name, classmethod(build))
    keys = {
        "build_model": ["MODEL.RPN.HEAD_NAME", "Theirs"],
        "build_optimizer": ["SOLVER.OPTIMIZER", "Theirs"],
        "build_lr_scheduler": ["SOLVER.LR_SCHEDULER_NAME", "Theirs"],
    }
    with pytest.raises(UserError):
        Trainer(script_config(tmp_path, *keys[name]))
    # Detectron2's constructor builds these before the data, but for the schedule.
    error = UserError if name == "build_lr_scheduler" else NotImplementedError
    with pytest.raises(error, match="DATASETS" if error is UserError else name):
        Own(script_config(tmp_path, *keys[name], "DATASETS.TRAIN", ("there_is_none",)))


def test_a_script_without_this_projects_keys():
    with pytest.raises(UserError, match="call rsb_d2.add_rsb_config"):
        Trainer(get_cfg())
