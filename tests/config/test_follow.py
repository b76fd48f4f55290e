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


R50 = str(ROOT / "COCO-Detection" / "faster_rcnn_R_50_FPN_1x.yaml")


def test_a_default_that_somebody_wrote_says_something(tmp_path):
    """DEPTH: 50 stands in the YAML, and it is Detectron2's default."""
    named = [*FPN, "MODEL.TIMM.NAME", "resnet101"]
    with pytest.raises(UserError, match="is resnet101, but MODEL.RESNETS.DEPTH is 50, .*DEPTH 101"):
        load_config(R50, named)
    cfg = load_config(R50, [*named, "MODEL.RESNETS.DEPTH", "101"])
    assert (cfg.MODEL.TIMM.NAME, cfg.MODEL.TIMM.NORM) == ("resnet101", "BN")
    # In a file of one's own with the name of the model in it, and in what a run has written.
    (tmp_path / "theirs.yaml").write_text(f"_BASE_: {R50}\nMODEL: {{TIMM: {{NAME: resnet101}}}}\n")
    with pytest.raises(UserError, match="is resnet101, but MODEL.RESNETS.DEPTH is 50"):
        load_config(str(tmp_path / "theirs.yaml"), FPN)
    written = load_config(
        "",
        [
            *FPN,
            *named,
            "MODEL.FPN.IN_FEATURES",
            "['res4', 'res5']",
            "MODEL.ROI_HEADS.NAME",
            "StandardROIHeads",
        ],
    )
    (tmp_path / "config.yaml").write_text(written.dump())
    assert load_config(str(tmp_path / "config.yaml"), []).MODEL.TIMM.NAME == "resnet101"
    # What has no depth is not asked for one.
    assert load_config(R50, [*FPN, "MODEL.TIMM.NAME", "convnext_tiny"]).MODEL.RESNETS.DEPTH == 50


def test_a_norm_that_somebody_wrote_counts():
    opts = [*FPN, "MODEL.TIMM.NAME", "seresnet50", "MODEL.RESNETS.NORM", "FrozenBN"]
    assert load_config(R50, opts).MODEL.TIMM.NORM == "FrozenBN"
    with pytest.raises(UserError, match="TIMM.NORM is BN, but MODEL.RESNETS.NORM is FrozenBN"):
        load_config(R50, [*opts, "MODEL.TIMM.NORM", "BN"])
