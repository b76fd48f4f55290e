"""Keys of Detectron2 that a timm backbone cannot honor are refused in one line."""

import pytest
from detectron2.config import get_cfg

from rsb_d2 import UserError, add_rsb_config
from rsb_d2.checkpoint import check_architecture
from rsb_d2.modeling.spec import backbone_spec, check_heads

# Key, value, and a part of the message (a regular expression).
REFUSED = [
    (
        "MODEL.RESNETS.DEFORM_ON_PER_STAGE",
        [False, True, True, True],
        "timm's ResNets have no deformable convolutions",
    ),
    ("MODEL.RESNETS.NORM", "GN", "cannot be made of the batch norm that timm's resnet50"),
    ("MODEL.RESNETS.DEPTH", 77, "timm has no ResNet of DEPTH 77"),
    ("MODEL.RESNETS.NUM_GROUPS", 3, "timm has no ResNet of DEPTH 50, NUM_GROUPS 3"),
    (
        "MODEL.RESNETS.WIDTH_PER_GROUP",
        12,
        "timm has no ResNet of DEPTH 50, NUM_GROUPS 1 and WIDTH_PER_GROUP 12",
    ),
    ("MODEL.RESNETS.RES2_OUT_CHANNELS", 128, "timm's resnet50, .* has 256; write 256"),
    ("MODEL.RESNETS.STEM_OUT_CHANNELS", 32, "timm's resnet50, .* has 64; write 64"),
    ("MODEL.RESNETS.RES5_DILATION", 2, "the FPN needs strides that double; write 1"),
    ("MODEL.RESNETS.OUT_FEATURES", ["stem", "res5"], "timm's stem has stride 2"),
    ("MODEL.PROPOSAL_GENERATOR.NAME", "RRPN", "rotated boxes are not supported; write RPN"),
    ("MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator", "rotated boxes are not supported"),
    ("MODEL.ROI_HEADS.NAME", "RROIHeads", "rotated boxes are not supported"),
    ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignRotated", "rotated boxes are not supported"),
    (
        "MODEL.WEIGHTS",
        "detectron2://ImageNetPretrained/MSRA/R-50.pkl",
        "is a Caffe2 model, .*; write MODEL.WEIGHTS timm://resnet50.a1_in1k",
    ),
]


@pytest.mark.parametrize("key, value, line", REFUSED)
def test_what_is_refused(key, value, line):
    cfg = get_cfg()
    add_rsb_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone"
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    spec = backbone_spec(cfg)
    cfg.merge_from_list([key, value])
    with pytest.raises(UserError, match=f"{key}.*{line}") as error:
        check_architecture(cfg.MODEL.WEIGHTS, spec.name)
        check_heads(cfg)
        backbone_spec(cfg)
    assert "\n" not in str(error.value)
