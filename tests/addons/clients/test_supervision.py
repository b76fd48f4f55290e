"""supervision on a package and on a model in memory."""

import numpy as np
import pytest

from rsb_d2 import UserError

sv = pytest.importorskip("supervision")


@pytest.fixture(params=["package", "in memory"])
def predictor(request, served):
    return served.in_memory if request.param == "in memory" else served.package()


@pytest.fixture
def bgr(rgb):
    return np.ascontiguousarray(rgb[:, :, ::-1])


def test_detections(served, predictor, rgb, bgr):
    detections = sv.Detections.from_detectron2(predictor(bgr))
    expected = served.detect(rgb)
    assert len(detections) == len(expected) >= 10
    assert np.abs(detections.xyxy - expected.pred_boxes.tensor.numpy()).max() < 1e-3
    assert np.abs(detections.confidence - expected.scores.numpy()).max() < 1e-5
    assert detections.class_id.tolist() == expected.pred_classes.tolist()
    assert (detections.mask is not None) == expected.has("pred_masks")
    if detections.mask is not None:
        assert (detections.mask != expected.pred_masks.numpy()).mean() < 1e-4


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3))]
)
def test_images_that_are_refused(served, image):
    with pytest.raises(UserError, match="must be uint8 of shape"):
        served.in_memory(image)
