"""A detector of C4, whose ROI heads have timm's last stage, in files."""

import pytest

from rsb_d2 import UserError
from rsb_d2.addons.export import export_detector
from tests.helpers.models.exporting import NAMES, THRESHOLD, pictures
from tests.helpers.seeded_run import make_seeded_config, make_seeded_model

C4 = [
    *("MODEL.BACKBONE.NAME", "build_timm_c4_backbone", "MODEL.TIMM.OUT_FEATURES", "['res4']"),
    *("MODEL.RPN.IN_FEATURES", "['res4']", "MODEL.ROI_HEADS.IN_FEATURES", "['res4']"),
    *("MODEL.ROI_HEADS.NAME", "TimmRes5ROIHeads", "MODEL.ROI_MASK_HEAD.NUM_CONV", "0"),
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[32, 64, 128]]", "MODEL.RPN.POST_NMS_TOPK_TEST", "20"),
]


@pytest.fixture(scope="module")
def detector():
    cfg = make_seeded_config("mask", *THRESHOLD, *C4)
    return cfg, make_seeded_model(cfg)


def test_it_computes_what_the_model_does(detector, tmp_path):
    """The export compares the file with the model, on images of several sizes."""
    pytest.importorskip("onnxruntime")
    result = export_detector(*detector, NAMES, str(tmp_path / "c4.onnx"), pictures())
    assert len(set(result.sizes)) >= 3 and result.difference.detections >= 5
    assert result.difference.box < 0.1 and result.difference.score < 1e-3


def test_torch_export_refuses_it_in_one_line(detector, tmp_path):
    with pytest.raises(UserError, match="^TimmRes5ROIHeads cannot .*: name a file in .onnx$"):
        export_detector(*detector, NAMES, str(tmp_path / "c4.pt2"), pictures())
