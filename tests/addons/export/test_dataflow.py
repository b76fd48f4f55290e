"""The data flow that torch.export takes is Detectron2's inference."""

import numpy as np
import pytest
import torch
from detectron2.modeling.roi_heads import StandardROIHeads

from rsb_d2 import UserError
from rsb_d2.addons.export import (
    Detections,
    compare,
    export_detector,
    make_dataflow,
)
from rsb_d2.addons.export.running import run_model
from tests.helpers.models.exporting import NAMES, THRESHOLD, pictures
from tests.helpers.seeded_run import make_seeded_config, make_seeded_model


@pytest.mark.parametrize("kind", ["faster", "mask", "cascade", "stock cascade", "retinanet"])
@pytest.mark.parametrize("threshold", ["0.3", "1.0"])
def test_dataflow_is_detectron2s_inference(kind, threshold):
    opts = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", threshold]
    opts += ["MODEL.RETINANET.SCORE_THRESH_TEST", threshold]
    if kind.startswith("stock"):
        opts += ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads"]
    model = make_seeded_model(make_seeded_config(kind.split()[-1], *opts)).requires_grad_(False)
    expected, dataflow = run_model(model), make_dataflow(model)
    for image in pictures(2, 160):
        found = Detections(*(o.numpy() for o in dataflow(torch.from_numpy(image))))
        difference = compare(expected(image), found, float(threshold), 100)
        assert difference.box < 1e-3 and difference.score < 1e-5 and difference.mask < 1e-5
        assert (difference.detections >= 3) == (threshold == "0.3")


def test_what_torch_export_cannot_take(tmp_path):
    cfg = make_seeded_config("retinanet", *THRESHOLD)  # whose images get 96 pixels, of 129
    model = make_seeded_model(cfg)
    with pytest.raises(UserError, match="resized to 96 x 96, .* of 129 pixels or more"):
        export_detector(cfg, model, NAMES, str(tmp_path / "m.pt2"), [np.zeros((9, 9, 3), np.uint8)])

    class OtherHeads(StandardROIHeads):
        pass

    model = make_seeded_model(make_seeded_config("faster"))
    model.roi_heads.__class__ = OtherHeads
    with pytest.raises(UserError, match="OtherHeads cannot be exported with torch.export"):
        make_dataflow(model)
    assert not list(tmp_path.iterdir())
