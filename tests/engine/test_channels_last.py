"""Every meta-architecture and head with channels-last weights: the values of the plain model."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from rsb_d2 import Trainer
from rsb_d2.config.loading import load_config
from tests.helpers.paths import CONFIGS
from tests.helpers.zoo_model import FEW, make_inputs

SMALL = [
    *map(str, FEW),
    *("MODEL.WEIGHTS", "", "MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "16"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "8", "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "(8, 8)"),
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", "32", "MODEL.BACKBONE.FREEZE_AT", "0"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"),
    *("MODEL.ROI_HEADS.NUM_CLASSES", "2", "MODEL.RETINANET.NUM_CLASSES", "2"),
    *("MODEL.RETINANET.TOPK_CANDIDATES_TEST", "20", "MODEL.TIMM.NORM_EVAL", "False"),
]
KEYPOINTS = ("MODEL.KEYPOINT_ON", "True")
C4 = [
    *("MODEL.BACKBONE.NAME", "build_timm_c4_backbone", "MODEL.ROI_HEADS.NAME", "TimmRes5ROIHeads"),
    *("MODEL.ROI_HEADS.IN_FEATURES", "['res4']", "MODEL.RPN.IN_FEATURES", "['res4']"),
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[32, 64, 128]]", "MODEL.TIMM.OUT_FEATURES", "['res4']"),
    *("MODEL.ROI_MASK_HEAD.NUM_CONV", "0"),
]
KINDS = {
    "mask": ("mask_rcnn_rsb_1x.yaml",),
    "keypoint and mask": ("mask_rcnn_rsb_1x.yaml", *KEYPOINTS),
    "c4": ("mask_rcnn_rsb_1x.yaml", *C4),
    "cascade": ("cascade_mask_rcnn_rsb_1x.yaml", *KEYPOINTS),
    "retinanet": ("retinanet_rsb_1x.yaml",),
    "panoptic": ("panoptic_fpn_rsb_1x.yaml",),
}


def make_pair(kind):
    """The same model without and with channels-last weights."""
    config, *opts = KINDS[kind]
    opts = ["MODEL.TIMM.NAME", "resnet10t", *SMALL, *opts]
    cfg = load_config(str(CONFIGS / config), opts)
    plain = build_model(cfg)
    cfg.MODEL.CHANNELS_LAST = True
    model = Trainer.build_model(cfg)
    model.load_state_dict(plain.state_dict())
    return cfg, plain, model


def compute_losses(model, inputs):
    torch.manual_seed(0)  # of the sampled regions
    with EventStorage(1):
        losses = model.train()(inputs)
    sum(losses.values()).backward()
    return {name: loss.item() for name, loss in losses.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_outputs_equal_the_plain_models(kind):
    torch.manual_seed(0)
    cfg, plain, model = make_pair(kind)
    weights = [w for w in model.parameters() if w.dim() == 4 and min(w.shape[1:3]) > 1]
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)
    inputs = make_inputs(cfg, (64, 96))
    expected = compute_losses(plain, inputs)
    assert compute_losses(model, inputs) == pytest.approx(expected, rel=1e-3, abs=1e-4)
    gradients = {n: w.grad for n, w in plain.named_parameters() if w.grad is not None}
    assert gradients.keys() == {n for n, w in model.named_parameters() if w.grad is not None}

    inputs = make_inputs(cfg, (64, 96), training=False)
    with torch.no_grad():
        outputs, found = plain.eval()(inputs), model.eval()(inputs)
    for a, b in zip(outputs, found):
        assert a.keys() == b.keys()
        if "instances" in a:
            fields = a["instances"].get_fields()
            assert len(a["instances"]) == len(b["instances"]) > 0
            assert fields.keys() == b["instances"].get_fields().keys()
            if "keypoint" in kind:
                points, others = fields["pred_keypoints"], b["instances"].pred_keypoints
                near = (points - others).abs()[:, :, :2].amax(2) < 1.0
                assert near.float().mean() > 0.95  # equal maxima may change places
