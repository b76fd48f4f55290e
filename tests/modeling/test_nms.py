"""NMS and clipping as they are on a GPU, beside Detectron2's."""

import torch
from detectron2.layers import batched_nms
from detectron2.structures import Boxes

from rsb_d2.modeling.proposals.nms import _at_once, clip


def random_boxes(number):
    corner = torch.rand(number, 2) * 300 - 20
    return torch.cat([corner, corner + torch.rand(number, 2) * 90], dim=1)


def test_groups_apart():
    boxes, scores = random_boxes(900), torch.rand(900)
    groups = torch.randint(0, 5, (900,))
    expected = batched_nms(boxes, scores, groups, 0.5)
    assert 0 < len(expected) < 900
    assert torch.equal(expected, _at_once(boxes, scores, groups, 0.5))


def test_clip():
    boxes, expected = random_boxes(100), Boxes(random_boxes(1))
    expected.tensor = boxes.clone()
    expected.clip((150, 200))
    assert torch.equal(clip(boxes, (150, 200)), expected.tensor)
    assert clip(boxes[:0], (150, 200)).shape == (0, 4)
