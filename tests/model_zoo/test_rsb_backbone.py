"""with_rsb_backbone: a config of Detectron2, and weights and images that go together."""

import logging

import pytest
from detectron2 import model_zoo as stock_zoo
from detectron2.config import get_cfg

from rsb_d2 import UserError, add_rsb_config, model_zoo
from rsb_d2.model_zoo import with_rsb_backbone

FRCNN = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"


def zoo(name=FRCNN, *opts):
    cfg = stock_zoo.get_config(name)
    cfg.merge_from_list(list(opts))
    return cfg


def test_it_changes_the_config_and_returns_it(caplog):
    caplog.set_level(logging.INFO, "rsb_d2")
    cfg = zoo()
    assert with_rsb_backbone(cfg) is cfg
    assert cfg.MODEL.BACKBONE.NAME == "build_timm_fpn_backbone"
    assert cfg.MODEL.WEIGHTS == "timm://resnet50.a1_in1k"
    assert cfg.INPUT.FORMAT == "RGB" and cfg.MODEL.PIXEL_MEAN[0] > cfg.MODEL.PIXEL_MEAN[2]
    assert cfg.MODEL.RESNETS.STRIDE_IN_1X1 is False
    assert "'BGR'" in caplog.text and "[103.53, 116.28, 123.675]" in caplog.text
    assert "strides in its 3x3 convolutions" in caplog.text
    before = cfg.dump()
    caplog.clear()
    assert with_rsb_backbone(cfg).dump() == before
    assert not caplog.records


def test_own_configs_are_unchanged():
    for name in ("frcnn_rsb_1x", "retinanet_rsb_1x", "frcnn_rsb_seresnet50_1x"):
        cfg = model_zoo.get_config(name)
        before = cfg.clone()
        with_rsb_backbone(cfg).MODEL.RESNETS.STRIDE_IN_1X1 = True
        assert cfg.dump() == before.dump()


@pytest.mark.parametrize(
    "name, opts, weights, message",
    [
        ("COCO-Detection/faster_rcnn_R_101_C4_3x.yaml", [], "timm://resnet101.a1_in1k", ""),
        (
            "COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x.yaml",
            [],
            "timm://resnext101_32x8d.tv2_in1k",
            'timm has no "ResNet strikes back" weights of resnext101_32x8d',
        ),
        (
            "Cityscapes/mask_rcnn_R_50_FPN.yaml",
            [],
            "timm://resnet50.a1_in1k",
            "MODEL.WEIGHTS was detectron2://COCO-InstanceSegmentation/",
        ),
        ("Misc/scratch_mask_rcnn_R_50_FPN_9x_syncbn.yaml", [], "", "training is from scratch"),
        (FRCNN, ["MODEL.WEIGHTS", ""], "timm://resnet50.a1_in1k", ""),
        (FRCNN, ["MODEL.WEIGHTS", "theirs.pth"], "theirs.pth", ""),
        (FRCNN, ["MODEL.WEIGHTS", "timm://resnet50.a3_in1k"], "timm://resnet50.a3_in1k", ""),
        (
            FRCNN,
            ["MODEL.WEIGHTS", "detectron2://ImageNetPretrained/torchvision/R-50.pkl"],
            "detectron2://ImageNetPretrained/torchvision/R-50.pkl",
            "",
        ),
        (FRCNN, ["MODEL.RESNETS.NUM_GROUPS", 64, *("MODEL.RESNETS.WIDTH_PER_GROUP", 4)]
         + ["MODEL.RESNETS.DEPTH", 101], "timm://resnext101_64x4d.c1_in1k", ""),
    ],
)  # fmt: skip
def test_weights(name, opts, weights, message, caplog):
    caplog.set_level(logging.INFO, "rsb_d2")
    assert with_rsb_backbone(zoo(name, *opts)).MODEL.WEIGHTS == weights
    assert message in caplog.text


def test_weights_of_ones_own():
    cfg = with_rsb_backbone(zoo(), "timm://resnet50.a2_in1k")
    assert cfg.MODEL.WEIGHTS == "timm://resnet50.a2_in1k"


@pytest.mark.parametrize(
    "opts, weights, line",
    [
        (["MODEL.BACKBONE.NAME", "build_p67_resnet"], "", "BACKBONE.NAME: build_p67_resnet has no"),
        ([], "timm://resnet101.a1_in1k", "is of resnet101, but MODEL.TIMM.NAME is resnet50"),
        ([], "timm://resnet50.a9_in1k", "no weights timm://resnet50.a9_in1k; did you mean"),
        ([], "detectron2://ImageNetPretrained/MSRA/R-50.pkl", "Caffe2.*timm://resnet50.a1_in1k$"),
        (["MODEL.PIXEL_MEAN", [1.0], "MODEL.PIXEL_STD", [1.0]], "", "write INPUT: {FORMAT: RGB}"),
        (["MODEL.RESNETS.DEPTH", 51], "", "no ResNet of DEPTH 51"),
    ],
)
def test_unsupported_configs(opts, weights, line):
    with pytest.raises(UserError, match=line) as error:
        with_rsb_backbone(zoo(FRCNN, *opts), weights)
    assert "\n" not in str(error.value)


def test_contradiction_with_a_name_and_a_frozen_config():
    cfg = zoo("COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml")
    add_rsb_config(cfg)
    cfg.MODEL.TIMM.NAME = "resnet50"
    with pytest.raises(UserError, match="TIMM.NAME is resnet50, but MODEL.RESNETS.DEPTH is 101"):
        with_rsb_backbone(cfg)
    cfg = get_cfg()
    cfg.freeze()
    with pytest.raises(UserError, match=r"frozen; give cfg.clone\(\)"):
        with_rsb_backbone(cfg)


@pytest.mark.parametrize(
    "name, opts, weights, expected",
    [
        (FRCNN, [], "", ("AdamW", 0.0002, 0.05)),
        (FRCNN, ["SOLVER.IMS_PER_BATCH", 4], "", ("AdamW", 0.00005, 0.05)),
        (
            "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
            ["SOLVER.IMS_PER_BATCH", 8],
            "",
            ("AdamW", 0.00005, 0.05),
        ),
        (FRCNN, [], "timm://resnet50.tv_in1k", ("SGD", 0.02, 0.0001)),  # for which SGD is right
    ],
)
def test_the_recipe_goes_with_the_weights(name, opts, weights, expected):
    cfg = with_rsb_backbone(zoo(name, *opts), weights)
    assert (cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY) == expected
    kept = with_rsb_backbone(zoo(name, *opts), weights, recipe=False).SOLVER
    assert kept.OPTIMIZER == "SGD" and kept.BASE_LR == zoo(name, *opts).SOLVER.BASE_LR
