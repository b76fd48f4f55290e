"""The comparison of an exported file's detections with the model's."""

import numpy as np
import pytest

from rsb_d2 import UserError
from rsb_d2.addons.export import Detections, compare


def make_detections(boxes, scores, classes, masks=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return Detections(boxes, np.array(scores, np.float32), np.array(classes), masks)


BOX = [10.0, 10.0, 20.0, 20.0]


@pytest.mark.parametrize(
    "found, message",
    [
        (make_detections([[10.2, 10, 20, 20]], [0.8], [1]), "1 of 1 detections are missing"),
        (make_detections([BOX], [0.802], [1]), "1 of 1 detections are missing"),
        (make_detections([BOX], [0.8], [2]), "class 1, score 0.8000"),
        (make_detections([], [], []), "1 of 1 detections are missing and 0 are new"),
        (make_detections([BOX, BOX], [0.8, 0.8], [1, 1]), "0 of 1 .* 1 are new, new for one"),
    ],
)
def test_compare_names_a_difference(found, message):
    with pytest.raises(UserError, match=message):
        compare(make_detections([BOX], [0.8], [1]), found)


def test_compare_pairs_in_any_order_and_forgives_at_the_threshold():
    other = [50.0, 50.0, 70.0, 80.0]
    expected = make_detections([BOX, other, BOX], [0.8, 0.79999, 0.3004], [1, 1, 2])
    found = make_detections([other, [10.05, 10, 20, 20]], [0.8, 0.7999], [1, 1])
    with pytest.raises(UserError):
        compare(expected, found)
    difference = compare(expected, found, score_threshold=0.3)
    assert difference.detections == 2
    assert difference.box == pytest.approx(0.05, abs=1e-4)
    # A full list: which of equal scores was the last one in is no difference.
    compare(expected, found, score_threshold=0.05, max_detections=3)


def test_compare_looks_at_masks():
    masks = np.full((1, 28, 28), 0.5, np.float32)
    expected = make_detections([BOX], [0.8], [1], masks)
    assert compare(expected, make_detections([BOX], [0.8], [1], masks + 1e-4)).mask > 0
    with pytest.raises(UserError, match="mask"):
        compare(expected, make_detections([BOX], [0.8], [1], masks + 0.01))
