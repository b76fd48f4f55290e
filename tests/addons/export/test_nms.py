"""Suppression of any number of boxes and classes, to the digit."""

import numpy as np
import pytest
import torch
from detectron2.layers import batched_nms
from torch import nn
from torchvision.ops import boxes as box_ops

from rsb_d2.addons.export.traceable import batched_nms_in_double, traceable_nms

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")


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
