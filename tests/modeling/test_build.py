"""The registered builders, from a YAML file as a user of the backbone alone would write it."""

import pytest
import timm
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_backbone, build_model

from rsb_d2 import TimmBackbone, UserError, add_rsb_config
from rsb_d2.modeling import check_pixel_format
from rsb_d2.modeling.spec import BUILDERS

YAML = """
MODEL:
  BACKBONE: {NAME: build_timm_fpn_backbone}
  TIMM: {NAME: resnet18}
  FPN: {IN_FEATURES: [res2, res3, res4, res5]}
  PIXEL_MEAN: [123.675, 116.28, 103.53]
  PIXEL_STD: [58.395, 57.12, 57.375]
  ANCHOR_GENERATOR: {SIZES: [[32], [64], [128], [256], [512]]}
  RPN: {IN_FEATURES: [p2, p3, p4, p5, p6]}
  ROI_HEADS: {NAME: StandardROIHeads, IN_FEATURES: [p2, p3, p4, p5]}
  ROI_BOX_HEAD: {NAME: FastRCNNConvFCHead, NUM_FC: 2}
  DEVICE: cpu
INPUT: {FORMAT: RGB}
"""


def make_cfg(tmp_path, *opts):
    path = tmp_path / "theirs.yaml"
    path.write_text(YAML)
    cfg = get_cfg()
    add_rsb_config(cfg)
    cfg.merge_from_file(str(path))
    cfg.merge_from_list(list(opts))
    return cfg


def test_defaults_do_not_change_stock_configs():
    stock, ours = get_cfg(), get_cfg()
    add_rsb_config(ours)

    def leave(node, reference):
        for key in list(node):
            if key not in reference:
                del node[key]
            elif isinstance(node[key], type(node)):
                leave(node[key], reference[key])

    leave(ours, stock)
    assert ours.dump() == stock.dump()


def test_fpn_backbone_with_stock_heads(tmp_path, device):
    model = build_model(make_cfg(tmp_path, "MODEL.DEVICE", device)).eval()
    shapes = model.backbone.output_shape()
    assert {name: (s.stride, s.channels) for name, s in shapes.items()} == {
        "p2": (4, 256),
        "p3": (8, 256),
        "p4": (16, 256),
        "p5": (32, 256),
        "p6": (64, 256),
    }
    assert model.backbone.size_divisibility == 32
    assert isinstance(model.backbone.bottom_up, TimmBackbone)
    with torch.no_grad():
        (result,) = model([{"image": torch.zeros(3, 65, 90)}])
    assert result["instances"].image_size == (65, 90)


def test_retinanet_fpn_backbone(tmp_path):
    cfg = make_cfg(tmp_path, "MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"])
    cfg.MODEL.BACKBONE.NAME = "build_timm_retinanet_fpn_backbone"
    backbone = build_backbone(cfg)
    strides = {name: s.stride for name, s in backbone.output_shape().items()}
    assert strides == {"p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}
    # P6 comes from res5, as in Detectron2's own builder.
    stock = get_cfg()
    stock.MODEL.RESNETS.DEPTH = 18
    stock.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    stock.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    stock.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    builder = BACKBONE_REGISTRY.get("build_retinanet_resnet_fpn_backbone")
    reference = builder(stock, ShapeSpec(channels=3))
    expected = {n: p.shape for n, p in reference.named_parameters() if "bottom_up" not in n}
    found = {n: p.shape for n, p in backbone.named_parameters() if "bottom_up" not in n}
    assert found == expected


def test_keys_of_the_plain_backbone(tmp_path):
    cfg = make_cfg(tmp_path, "MODEL.TIMM.OUT_FEATURES", ["res4"], "MODEL.BACKBONE.FREEZE_AT", 3)
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    cfg.MODEL.TIMM.NORM = "FrozenBN"
    backbone = build_backbone(cfg)
    assert list(backbone.output_shape()) == ["res4"]
    assert {n.split(".")[1] for n, p in backbone.named_parameters() if p.requires_grad} == {
        "layer3"
    }


@pytest.mark.parametrize(
    "opts",
    [
        ["INPUT.FORMAT", "BGR"],
        ["MODEL.PIXEL_MEAN", [103.53, 116.28, 123.675]],
        ["MODEL.PIXEL_MEAN", [0.485, 0.456, 0.406]],
        ["MODEL.PIXEL_STD", [1.0, 1.0, 1.0]],
        ["MODEL.PIXEL_STD", [57.375, 57.12, 58.395]],
        ["MODEL.PIXEL_MEAN", [123.675], "MODEL.PIXEL_STD", [58.395]],
    ],
)
def test_wrong_pixels_stop_with_the_lines_to_write(tmp_path, opts):
    cfg = make_cfg(tmp_path, *opts)
    with pytest.raises(UserError) as e:
        build_model(cfg)
    assert "FORMAT: RGB" in str(e.value)
    assert "PIXEL_MEAN: [123.675, 116.28, 103.53]" in str(e.value)
    assert "PIXEL_STD: [58.395, 57.12, 57.375]" in str(e.value)


def test_pixels_are_those_of_the_model_named(tmp_path):
    name = "inception_v3.tv_in1k"  # trained on another mean and scale than ResNets
    assert timm.get_pretrained_cfg(name).mean != (0.485, 0.456, 0.406)
    with pytest.raises(UserError, match=r"PIXEL_MEAN: \[127.5, 127.5, 127.5\]"):
        check_pixel_format(make_cfg(tmp_path), name)
    check_pixel_format(make_cfg(tmp_path, "MODEL.PIXEL_MEAN", [123.7, 116.3, 103.5]), "resnet50")


def test_mistakes_in_the_config(tmp_path):
    with pytest.raises(UserError, match="no model 'resnet15'.*resnet1"):
        build_backbone(make_cfg(tmp_path, "MODEL.TIMM.NAME", "resnet15"))
    with pytest.raises(UserError, match="MODEL.FPN.IN_FEATURES.*must be of.*res4"):
        build_backbone(make_cfg(tmp_path, "MODEL.TIMM.OUT_FEATURES", ["res4"]))


@pytest.mark.parametrize("name", BUILDERS)
def test_a_builder_reads_no_keys_of_heads(name):
    """It works under Detectron2's defaults, with their heads and images, and a frozen config."""
    cfg = get_cfg()
    add_rsb_config(cfg)
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.FPN.IN_FEATURES = ["res4", "res5"]
    cfg.MODEL.TIMM.OUT_FEATURES = ["res4", "res5"] if "fpn" in name else ["res4"]
    cfg.freeze()
    before = cfg.dump()
    assert cfg.MODEL.ROI_HEADS.NAME == "Res5ROIHeads"
    with torch.device("meta"):
        backbones = build_backbone(cfg), BACKBONE_REGISTRY.get(name)(cfg, None)
    for backbone in backbones:
        bottom_up = getattr(backbone, "bottom_up", backbone)
        shape = bottom_up.output_shape()["res4"]
        assert (shape.channels, shape.stride) == (1024, 16)
        assert bottom_up.body.conv1.in_channels == len(cfg.MODEL.PIXEL_MEAN)
    assert cfg.dump() == before
