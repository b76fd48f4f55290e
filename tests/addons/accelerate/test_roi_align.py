"""RoIAlign and the poolers compared with the stock ones."""

import pytest
import torch
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes

from rsb_d2.addons.accelerate.roi_align import (
    ChannelsLastROIPooler,
    roi_align_channels_last,
)


def make_rois(num, height, width, images=2):
    centre = torch.rand(num, 2) * torch.tensor([width, height])
    size = torch.exp(torch.rand(num, 2) * 5 + 1)
    boxes = torch.cat([centre - size / 2, centre + size / 2], 1)
    boxes[: num // 2].clamp_(0, height)
    boxes[-4] = torch.tensor([0.0, 0.0, width, height])
    boxes[-3, 2:] = boxes[-3, :2]  # no area
    boxes[-2, 2:] = boxes[-2, :2] - 5  # inside out
    boxes[-1] = torch.tensor([-900.0, 5.0, -800.0, 60.0])  # outside
    return torch.cat([torch.randint(0, images, (num, 1)).float(), boxes], 1)


@pytest.mark.parametrize("size", [(7, 7), (3, 5)])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("aligned", [False, True])
def test_roi_align_is_torchvisions(size, sampling_ratio, aligned):
    features = torch.randn(2, 8, 40, 54)
    rois = make_rois(60, 640, 864)
    pooler = ROIAlign(size, 1 / 16, sampling_ratio, aligned)
    expected = pooler(features, rois)
    out = torch.full((61, *size, 8), 7.0)
    features = features.contiguous(memory_format=torch.channels_last)
    rows = torch.randperm(60)
    roi_align_channels_last(features, rois, pooler, out, rows)
    found = out[rows].permute(0, 3, 1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=3e-5)
    assert (out[60] == 7).all()


@pytest.mark.parametrize("scales", [[1 / 4, 1 / 8, 1 / 16, 1 / 32], [1 / 16]])
def test_pooler_is_the_stock_one(scales):
    pooler = ROIPooler(7, scales, 0, "ROIAlignV2")
    features = [torch.randn(2, 8, int(320 * s), int(448 * s)) for s in scales]
    rois = make_rois(80, 320, 448)[:-3]
    boxes = [Boxes(rois[rois[:, 0] == i, 1:]) for i in range(2)]
    empty = [boxes[0], Boxes(torch.zeros(0, 4))]
    none = [Boxes(torch.zeros(0, 4)), Boxes(torch.zeros(0, 4))]
    assert ChannelsLastROIPooler.takes(pooler)
    ours = ChannelsLastROIPooler(pooler)
    for box_lists in (boxes, empty, none):
        expected, found = pooler(features, box_lists), ours(features, box_lists)
        assert expected.shape == found.shape
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.enable_grad()
def test_gradients_are_the_stock_ones(dtype):
    torch.manual_seed(0)
    scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    stock = ROIPooler(7, scales, 0, "ROIAlignV2")
    ours = ChannelsLastROIPooler(stock)
    rois = make_rois(80, 320, 448)[:-3]
    box_lists = [Boxes(rois[rois[:, 0] == i, 1:]) for i in range(2)]
    box_lists[1] = box_lists[1][:0]  # nor is there a region of the last two levels
    box_lists[0] = box_lists[0][box_lists[0].area() < 150**2]
    maps = [torch.randn(2, 8, int(320 * s), int(448 * s)).to(dtype) for s in scales]
    weight = torch.randn(len(box_lists[0]), 8, 7, 7)
    gradients = []
    for pooler in (stock, ours):
        leaves = [m.clone().requires_grad_() for m in maps]
        # As autocast does it for torchvision's operator.
        x = [m.float() for m in leaves] if pooler is stock else leaves
        pooled = pooler(x, box_lists)
        assert pooler is stock or pooled.dtype == dtype
        (pooled.to(dtype).float() * weight).sum().backward()
        gradients.append([m.grad for m in leaves])
    expected, found = gradients
    assert all(e.abs().max() > 0.5 for e in expected[:2])
    assert (found[2] == 0).all() and (found[3] == 0).all()  # and not None, which no optimizer sees
    for e, f in zip(expected, found):
        rtol, atol = (1e-5, 3e-5) if dtype == torch.float32 else (1e-2, 1e-2)
        torch.testing.assert_close(f, e, rtol=rtol, atol=atol)
