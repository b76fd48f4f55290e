"""The pooler for a GPU, on the CPU, beside the stock one."""

import pytest
import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes

from rsb_d2.addons.accelerate.roi_align import UnsplitROIPooler


def random_boxes(number, size=300.0):
    corner = torch.rand(number, 2) * size - 20
    sides = torch.exp(torch.rand(number, 2) * 6)
    return Boxes(torch.cat([corner, corner + sides], dim=1))


@pytest.mark.parametrize("kind", ["ROIAlignV2", "ROIAlign"])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_region_of_its_level_alone(kind, ratio, dtype):
    scales = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
    features = [torch.randn(2, 8, int(320 * s), int(256 * s)).to(dtype) for s in scales]
    features = [f.contiguous(memory_format=torch.channels_last) for f in features]
    stock = ROIPooler(7, scales, ratio, kind)
    ours = ROIPooler(7, scales, ratio, kind)
    assert UnsplitROIPooler.takes(ours)
    ours.__class__ = UnsplitROIPooler
    empty = Boxes(torch.tensor([[5.0, 5.0, 5.0, 5.0]]))
    for boxes in (
        [random_boxes(60), random_boxes(40)],
        [random_boxes(0), random_boxes(3)],
        [empty, random_boxes(1)],
        [random_boxes(0), random_boxes(0)],
    ):
        expected = stock([f.float() for f in features], boxes)
        found = ours(features, boxes)
        assert found.dtype == torch.float32
        assert torch.equal(expected, found)
