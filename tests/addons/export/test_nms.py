"""Suppression of any number of boxes and classes, to the digit."""

import numpy as np
import pytest
import torch
from detectron2.layers import batched_nms
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from torch import nn
from torchvision.ops import boxes as box_ops

from rsb_d2.addons.export import export_detector, run_onnx
from rsb_d2.addons.export.files import run_model
from rsb_d2.addons.export.traceable import batched_nms_in_double, traceable_nms
from rsb_d2.data.class_names import ClassNames
from tests.helpers.models.exporting import THRESHOLD
from tests.helpers.seeded_run import make_seeded_config

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")


def close_boxes(rows):
    """(rows, 80, 4): in each class two pairs at an overlap of nearly 0.5, and boxes apart.

    A box and another of its width w, d to the right of it, overlap by (w - d) / (w + d): by 0.5
    if d is w / 3. Rounded to 1/128, as by the shift of a high class, 33.333 is more than 100 / 3
    and 33.668 is less than 101 / 3.
    """
    boxes = [[10, 0, 110, 30], [43.333, 0, 143.333, 30], [200, 0, 301, 30]]
    boxes += [[233.668, 0, 334.668, 30], [1300, 0, 1333, 30]]
    boxes += [[400 + 9 * i, 0, 405 + 9 * i, 30] for i in range(rows - len(boxes))]
    return torch.tensor(boxes[:rows])[:, None].repeat(1, 80, 1)


def close_scores(rows):
    """(rows, 80): a row less than the one before, and no two of them the same."""
    return torch.linspace(0.9, 0.5, rows * 80).reshape(rows, 80)


class HandMadeHeads(nn.Module):
    """Instead of ROI heads: a row of boxes for each four of the image, as sure as it is bright."""

    def __init__(self):
        super().__init__()
        self.boxes, self.scores = close_boxes(20).flatten(1), close_scores(20)
        self.scores[0, 79] = 0.99

    def forward(self, images, features, proposals, targets):
        rows, brightness = features["image"].shape[2] // 4, features["image"].max() / 255
        scores = nn.functional.pad(self.scores[:rows], (0, 1)) * brightness
        size = images.image_sizes[0]
        return fast_rcnn_inference([self.boxes[:rows]], [scores], [size], 0.3, 0.5, 2000)[0], {}


class HandMadeFeatures(nn.Module):
    size_divisibility, padding_constraints = 0, {}

    def forward(self, images):
        return {"image": images}


class NoProposals(nn.Module):
    def forward(self, *_):
        return [None], {}


def make_hand_made_detector():
    return GeneralizedRCNN(
        backbone=HandMadeFeatures(),
        proposal_generator=NoProposals(),
        roi_heads=HandMadeHeads(),
        pixel_mean=[0.0] * 3,
        pixel_std=[1.0] * 3,
        input_format="RGB",
    ).eval()


def test_many_classes_are_kept_apart_to_the_digit(tmp_path):
    cfg = make_seeded_config(
        *("faster", *THRESHOLD, "TEST.DETECTIONS_PER_IMAGE", "2000"),
        *("INPUT.MIN_SIZE_TEST", "80", "INPUT.MAX_SIZE_TEST", "1333"),
    )
    names = ClassNames(tuple(map(str, range(80))), tuple(range(80)))
    model, path = make_hand_made_detector(), str(tmp_path / "model.onnx")
    image = np.full((80, 1333, 3), 255, np.uint8)
    export_detector(cfg, model, names, path, [image])
    run = run_onnx(path)
    for height, brightness, number in [
        (80, 255, 1520),  # of 1,600 candidates all but the second of each class
        (52, 255, 960),  # of 1,040
        (48, 255, None),  # 960 candidates, of which Detectron2 itself rounds the coordinates
        (80, 82, 1),
        (80, 10, 0),
    ]:
        image = np.full((height, 1333, 3), brightness, np.uint8)
        expected, found = run_model(model)(image), run(image)
        assert len(expected) == len(found)
        assert number is None or len(found) == number
        assert (expected.boxes == found.boxes).all() and (expected.classes == found.classes).all()
        assert (np.diff(found.scores) < 0).all()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("num_example", [4, 40_000])
def test_nms_of_any_number_of_boxes(num_example):
    class Nms(nn.Module):
        def forward(self, boxes, scores, classes):
            with traceable_nms():
                return batched_nms(boxes, scores, classes, 0.5)

    def make(number):
        rng = np.random.default_rng(number)
        corner, size = rng.uniform(-300, 1000, (number, 2)), rng.uniform(1, 300, (number, 2))
        boxes = torch.tensor(np.hstack([corner, corner + size])).float()
        scores = torch.tensor((rng.permutation(number) + 1) / (number + 1)).float()
        return boxes, scores, torch.tensor(rng.integers(0, 80, number))

    torchvisions = box_ops.batched_nms
    few = *make(num_example)[:2], torch.arange(num_example) % 3
    traced = torch.jit.trace(Nms(), few, check_trace=False)
    assert box_ops.batched_nms is torchvisions
    for number in (0, 1, 2, 999, 1000, 1001, 5000):
        boxes = make(number)
        expected = batched_nms(*boxes, 0.5)
        assert (len(expected) < number) == (number > 2)
        assert torch.equal(traced(*boxes), expected)
        assert torch.equal(batched_nms_in_double(*boxes, 0.5), expected)
