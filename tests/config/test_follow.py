"""The name of a timm backbone in a stock YAML: what follows, with a message, or is asked for."""

import pytest
import yaml
from detectron2 import model_zoo

from rsb_d2 import UserError
from rsb_d2.config.loading import load_config
from tests.helpers.zoo_model import ROOT

FPN = ["MODEL.BACKBONE.NAME", "build_timm_fpn_backbone"]
R101 = str(ROOT / "COCO-Detection" / "faster_rcnn_R_101_FPN_3x.yaml")
X101 = str(ROOT / "COCO-Detection" / "faster_rcnn_X_101_32x8d_FPN_3x.yaml")
C4 = str(ROOT / "COCO-Detection" / "faster_rcnn_R_50_C4_1x.yaml")
RGB = ("RGB", [123.675, 116.28, 103.53], [58.395, 57.12, 57.375])


def pixels(cfg):
    return cfg.INPUT.FORMAT, list(cfg.MODEL.PIXEL_MEAN), list(cfg.MODEL.PIXEL_STD)


@pytest.mark.parametrize("path, name", [(R101, "resnet101"), (X101, "resnext101_32x8d")])
def test_depth_and_pixels_follow_with_a_message(path, name, caplog):
    caplog.set_level("INFO", "rsb_d2")
    cfg = load_config(path, FPN)
    assert cfg.MODEL.TIMM.NAME == name
    assert pixels(cfg) == RGB
    assert f"timm's {name}, norm FrozenBN" in caplog.text
    assert f"The images are fed as timm's {name} takes them, INPUT.FORMAT RGB" in caplog.text
    assert ("STRIDE_IN_1X1 True" in caplog.text) == (path == R101)


def test_pixels_are_those_of_the_weights(caplog):
    weights = ["MODEL.WEIGHTS", "timm://inception_v3.tv_in1k", "MODEL.TIMM.NAME", "inception_v3"]
    assert pixels(load_config(R101, [*FPN, *weights, "MODEL.RESNETS.DEPTH", 50])) == (
        "RGB",
        [127.5] * 3,
        [127.5] * 3,
    )


@pytest.mark.parametrize(
    "opts",
    [
        ["INPUT.FORMAT", "RGB"],
        ["MODEL.PIXEL_MEAN", [100.0, 100.0, 100.0]],
        ["MODEL.PIXEL_STD", [2.0, 2.0, 2.0]],
        ["INPUT.FORMAT", "L", "MODEL.PIXEL_MEAN", [100.0], "MODEL.PIXEL_STD", [1.0]],
    ],
)
def test_other_pixels_are_in_doubt_and_stay(opts):
    cfg = load_config(R101, [*FPN, *opts])
    assert pixels(cfg) == pixels(load_config(R101, opts)) != RGB


def test_what_is_right_stays_without_a_message(caplog):
    given = ["INPUT.FORMAT", "RGB", "MODEL.PIXEL_MEAN", RGB[1], "MODEL.PIXEL_STD", RGB[2]]
    assert pixels(load_config(R101, [*FPN, *given])) == RGB
    assert "images" not in caplog.text


def test_heads_of_c4_follow():
    cfg = load_config(C4, ["MODEL.BACKBONE.NAME", "build_timm_c4_backbone"])
    assert cfg.MODEL.ROI_HEADS.NAME == "TimmRes5ROIHeads"
    with pytest.raises(UserError, match="write MODEL.BACKBONE.NAME build_timm_c4_backbone"):
        load_config(C4, ["MODEL.BACKBONE.NAME", "build_timm_backbone"])


def test_stock_configs_stay_stock():
    for path in (R101, C4):
        cfg = load_config(path, [])
        stock = model_zoo.get_config(path[len(str(ROOT)) + 1 :])
        assert pixels(cfg) == pixels(stock)
        assert cfg.MODEL.ROI_HEADS.NAME == stock.MODEL.ROI_HEADS.NAME
        assert cfg.MODEL.TIMM.NAME == ""


def test_a_config_that_was_written_is_read_as_it_is(tmp_path, caplog):
    once = load_config(R101, FPN)
    (tmp_path / "config.yaml").write_text(once.dump())
    caplog.clear()
    again = load_config(str(tmp_path / "config.yaml"), [])
    # YAML has no tuples in lists, nor the same list twice.
    assert yaml.safe_load(again.dump()) == yaml.safe_load(once.dump())
    assert not caplog.records
