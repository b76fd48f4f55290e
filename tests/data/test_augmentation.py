"""Large-scale jitter, held to Detectron2's LazyConfigs of its new baselines, value by value."""

import inspect

import numpy as np
import pytest
import torch
from detectron2 import model_zoo as stock_zoo
from detectron2.config import instantiate
from detectron2.data import transforms as T
from detectron2.solver import build_lr_scheduler
from fvcore.common.param_scheduler import ParamScheduler

from rsb_d2 import UserError, model_zoo
from rsb_d2.config.checks import check_values
from rsb_d2.config.loading import load_config
from rsb_d2.data.mapper import CheckedDatasetMapper, build_augmentation
from rsb_d2.solver import build_optimizer
from tests.helpers.weights.standin_weights import make_image

PAIRS = [
    (f"mask_rcnn_rsb_lsj_{epochs}ep.yaml", f"new_baselines/mask_rcnn_R_50_FPN_{epochs}ep_LSJ.py")
    for epochs in (100, 400)
]
NAMES = [name for name, _ in PAIRS]


def arguments(augmentation):
    names = list(inspect.signature(type(augmentation).__init__).parameters)[1:]
    return {name: getattr(augmentation, name) for name in names}


@pytest.mark.parametrize("ours, stock", PAIRS, ids=NAMES)
def test_the_augmentations_are_detectron2s(ours, stock):
    cfg, expected = model_zoo.get_config(ours), stock_zoo.get_config(stock)
    mapper = CheckedDatasetMapper(cfg, is_train=True)
    found = mapper.augmentations.augs
    augmentations = [instantiate(a) for a in expected.dataloader.train.mapper.augmentations]
    assert len(found) == len(augmentations) == 3
    for one, other in zip(found, augmentations):
        assert isinstance(one, type(other)) and arguments(one) == arguments(other)
    assert mapper.recompute_boxes is expected.dataloader.train.mapper.recompute_boxes is True
    assert mapper.use_instance_mask and mapper.instance_mask_format == "polygon"


@pytest.mark.parametrize("ours, stock", PAIRS, ids=NAMES)
def test_the_schedule_is_detectron2s(ours, stock):
    cfg, expected = model_zoo.get_config(ours), stock_zoo.get_config(stock)
    assert cfg.SOLVER.MAX_ITER == expected.train.max_iter
    assert cfg.SOLVER.IMS_PER_BATCH == expected.dataloader.train.total_batch_size == 64
    assert cfg.SOLVER.AMP.ENABLED is expected.train.amp.enabled is True
    assert list(cfg.SOLVER.STEPS) == list(expected.lr_multiplier.scheduler.milestones)

    layers = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
    ours = build_optimizer(cfg, layers)
    assert type(ours) is torch.optim.AdamW  # on RSB weights; the baselines start from scratch
    assert {g["lr"] for g in ours.param_groups} == {0.0002 * (64 / 16) ** 0.5}

    multiplier = instantiate(expected.lr_multiplier)
    assert isinstance(multiplier, ParamScheduler)
    factors = build_lr_scheduler(cfg, ours)._multiplier
    end = cfg.SOLVER.MAX_ITER
    warm_up, steps = cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.STEPS
    around = {i + d for i in (warm_up, *steps) for d in range(-3, 4)}
    for i in sorted({*range(0, warm_up, 50), *around, *range(0, end, 9973), end - 1}):
        assert factors(i / end) == pytest.approx(multiplier(i / end), rel=1e-9), i


@pytest.mark.parametrize("ours, stock", PAIRS, ids=NAMES)
def test_the_model_is_detectron2s_but_for_the_backbone(ours, stock):
    cfg, expected = model_zoo.get_config(ours), stock_zoo.get_config(stock).model
    assert cfg.MODEL.BACKBONE.FREEZE_AT == expected.backbone.bottom_up.freeze_at == 0
    assert cfg.MODEL.TIMM.NORM == expected.backbone.bottom_up.stages.norm == "SyncBN"
    assert not cfg.MODEL.TIMM.NORM_EVAL
    assert cfg.MODEL.FPN.NORM == expected.backbone.norm
    assert cfg.MODEL.RPN.CONV_DIMS == list(expected.proposal_generator.head.conv_dims)
    head = expected.roi_heads.box_head
    assert [cfg.MODEL.ROI_BOX_HEAD.CONV_DIM] * cfg.MODEL.ROI_BOX_HEAD.NUM_CONV == head.conv_dims
    assert [cfg.MODEL.ROI_BOX_HEAD.FC_DIM] * cfg.MODEL.ROI_BOX_HEAD.NUM_FC == head.fc_dims
    for name, node in (("BOX", head), ("MASK", expected.roi_heads.mask_head)):
        norm = node.conv_norm(4)
        assert type(norm).__name__ == "NaiveSyncBatchNorm" and norm._stats_mode == "N"
        assert cfg.MODEL[f"ROI_{name}_HEAD"].NORM == "naiveSyncBN_N"


LSJ = ["INPUT.LSJ.ENABLED", "True", "INPUT.LSJ.SIZE", "64"]


def make_config(*opts):
    return load_config(model_zoo.get_config_file("frcnn_rsb_1x"), [*LSJ, *opts])


@pytest.mark.parametrize("scales", [(0.1, 0.2), (1.0, 1.0), (1.5, 2.0)])
def test_images_labels_and_boxes_are_of_the_size_that_is_asked_for(scales):
    cfg = make_config("INPUT.LSJ.MIN_SCALE", scales[0], "INPUT.LSJ.MAX_SCALE", scales[1])
    labels = np.full((48, 96), 7, np.uint8)
    given = T.AugInput(make_image(48, 96), sem_seg=labels, boxes=np.array([[0.0, 0, 96, 48]]))
    np.random.seed(0)
    T.AugmentationList(build_augmentation(cfg, is_train=True))(given)
    assert given.image.shape == (64, 64, 3) and given.sem_seg.shape == (64, 64)
    is_padded = (given.image == 128).all(axis=2)
    # What is padded has no label.
    assert set(np.unique(given.sem_seg)) == ({7, 255} if is_padded.any() else {7})
    if scales == (1.0, 1.0):
        assert given.boxes.tolist() == [[0, 0, 64, 32]] and is_padded[32:].all()


def test_evaluation_and_a_config_without_it_are_as_before():
    cfg = make_config()
    assert [type(a) for a in build_augmentation(cfg, is_train=False)] == [T.ResizeShortestEdge]
    cfg.INPUT.LSJ.ENABLED = False
    assert type(build_augmentation(cfg, is_train=True)[0]) is T.ResizeShortestEdge
    assert not CheckedDatasetMapper(cfg, is_train=True).recompute_boxes


@pytest.mark.parametrize(
    "opts, says",
    [
        (["INPUT.CROP.ENABLED", "True"], "large-scale jitter crops by itself"),
        (["INPUT.LSJ.MIN_SCALE", "3.0"], "INPUT.LSJ.MIN_SCALE is 3.0, above"),
        (["INPUT.LSJ.SIZE", "0"], "INPUT.LSJ.SIZE is 0"),
    ],
)
def test_invalid_values_are_a_one_line_error(opts, says):
    with pytest.raises(UserError, match=says):
        check_values(make_config(*opts), eval_only=False)
