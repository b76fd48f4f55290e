"""The model of a config, built and run before anything is written."""

import pytest
import torch
from detectron2.config import get_cfg

from rsb_d2 import Trainer, UserError, add_rsb_config
from rsb_d2.config import load_config
from rsb_d2.config.dry_run import dry_run
from rsb_d2.engine.tasks import check_config, get_task
from tests.helpers.paths import ROOT


def run(cfg, eval_only=False):
    dry_run(cfg, eval_only, get_task(cfg).build_and_run)


def make_config(name, *words):
    path = str(ROOT / "configs" / f"{name}.yaml")
    small = ["MODEL.TIMM.NAME", "resnet10t", "MODEL.DEVICE", "cpu"]
    if "pretrain" not in name:
        small += ["MODEL.FPN.OUT_CHANNELS", "32", "MODEL.ROI_BOX_HEAD.FC_DIM", "32"]
    return load_config(path, [*small, *words])


# A config, a key, a value that Detectron2 refuses only when it builds the model or trains, and
# what else the line contains.
BAD = [
    ("frcnn_rsb_1x", "MODEL.ANCHOR_GENERATOR.SIZES", "[[32], [64], [128]]", "input features is 5"),
    ("frcnn_rsb_1x", "MODEL.ANCHOR_GENERATOR.OFFSET", "1.5", ""),
    ("frcnn_rsb_1x", "MODEL.FPN.FUSE_TYPE", "mean", ""),
    ("frcnn_rsb_1x", "MODEL.FPN.NORM", "BatchNorm", ""),
    ("frcnn_rsb_1x", "MODEL.FPN.OUT_CHANNELS", "0", ""),
    ("frcnn_rsb_1x", "MODEL.RPN.IN_FEATURES", "['p2', 'p3']", ""),
    ("frcnn_rsb_1x", "MODEL.RPN.IN_FEATURES", "['p2', 'p7']", "has no p7"),
    ("frcnn_rsb_1x", "MODEL.RPN.BBOX_REG_LOSS_TYPE", "l2", ""),
    ("frcnn_rsb_1x", "MODEL.RPN.IOU_THRESHOLDS", "[0.7, 0.3]", ""),
    ("frcnn_rsb_1x", "MODEL.ROI_HEADS.IN_FEATURES", "[]", ""),
    ("frcnn_rsb_1x", "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", "(10.0, 10.0, 5.0)", ""),
    ("frcnn_rsb_1x", "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignV3", ""),
    ("frcnn_rsb_1x", "MODEL.TIMM.NAME", "inception_v3", ""),
    ("cascade_mask_rcnn_rsb_1x", "MODEL.ROI_MASK_HEAD.NORM", "Batch", ""),
    ("cascade_mask_rcnn_rsb_1x", "MODEL.ROI_BOX_CASCADE_HEAD.IOUS", "(0.5, 0.6)", ""),
    ("retinanet_rsb_1x", "MODEL.RETINANET.IN_FEATURES", "['p3', 'p4']", ""),
    ("retinanet_rsb_1x", "MODEL.RETINANET.PRIOR_PROB", "1.0", ""),
    ("retinanet_rsb_1x", "MODEL.RETINANET.BBOX_REG_WEIGHTS", "(1.0,)", ""),
    ("panoptic_fpn_rsb_1x", "MODEL.SEM_SEG_HEAD.NORM", "Batch", ""),
    ("panoptic_fpn_rsb_1x", "MODEL.SEM_SEG_HEAD.IN_FEATURES", "['p2', 'p9']", "has no p9"),
]


@pytest.mark.parametrize("config, key, value, says", BAD)
def test_errors_of_detectron2_become_one_line_with_the_key(config, key, value, says):
    with pytest.raises(UserError) as e:
        run(make_config(config, key, value))
    message = str(e.value)
    assert key in message and says in message
    assert "\n" not in message and len(message) < 1000


GOOD = ("frcnn_rsb_1x", "cascade_mask_rcnn_rsb_1x", "retinanet_rsb_1x", "panoptic_fpn_rsb_1x")


@pytest.mark.parametrize("name", [*GOOD, "pretrain/resnet50_rsb_a2"])
def test_a_dry_run_changes_neither_config_nor_random_state(name):
    cfg = make_config(name)
    cfg.freeze()
    before, state = cfg.dump(), torch.get_rng_state()
    run(cfg, eval_only=False)
    run(cfg, eval_only=True)
    assert cfg.dump() == before and torch.equal(torch.get_rng_state(), state)


def test_a_classifier_runs_in_both_sizes():
    """visformer takes one size only: 224."""
    name = "pretrain/resnet50_rsb_a2"
    words = ["MODEL.TIMM.NAME", "visformer_tiny", "INPUT.CLASSIFIER.TEST_SIZE", "224"]
    cfg = make_config(name, *words, "INPUT.CLASSIFIER.TRAIN_SIZE", "160")
    with pytest.raises(UserError, match="INPUT.CLASSIFIER.TRAIN_SIZE 160"):
        run(cfg)
    run(cfg, eval_only=True)


PRECOMPUTED = ["MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"]
KEYPOINTS = ["MODEL.KEYPOINT_ON", "True", "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", "5"]


@pytest.mark.parametrize(
    "name, words",
    [
        ("mask_rcnn_rsb_1x", [*KEYPOINTS, "INPUT.MASK_FORMAT", "bitmask"]),
        ("frcnn_rsb_1x", [*PRECOMPUTED, "MODEL.LOAD_PROPOSALS", "True"]),
        ("frcnn_rsb_1x", ["MODEL.FPN.NORM", "SyncBN"]),
    ],
)
def test_the_batch_has_all_that_models_learn_from(name, words):
    run(make_config(name, *words))


def test_stock_models_run_too():
    cfg = get_cfg()
    add_rsb_config(cfg)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", 18])
    cfg.merge_from_list(["MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.ROI_HEADS.NUM_CLASSES", 2])
    run(cfg)
    cfg.MODEL.RPN.BBOX_REG_LOSS_TYPE = "l2"
    with pytest.raises(UserError, match="MODEL.RPN.BBOX_REG_LOSS_TYPE 'l2'"):
        run(cfg)


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
        ("SOLVER.OPTIMIZER", "Adam"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64]]),
        ("SOLVER.REFERENCE_WORLD_SIZE", 3),
    ],
)
def test_the_trainer_of_a_script_stops_with_the_same_line(key, value, tmp_path):
    cfg = script_config(tmp_path, key, value)
    with pytest.raises(UserError, match=key) as e:
        Trainer(cfg)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "output").exists()


def test_a_config_without_this_projects_keys():
    with pytest.raises(UserError, match="call rsb_d2.add_rsb_config"):
        check_config(get_cfg())
