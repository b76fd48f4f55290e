"""Convolutions and linear layers with their norm and activation, beside the stock ones."""

import pytest
import torch
from detectron2.layers import Conv2d, get_norm
from torch import nn

from rsb_d2.addons.accelerate.conv import (
    InferenceConv2d,
    InferenceLinear,
    fuse_all,
    has_fused_kernels,
)
from rsb_d2.addons.accelerate.fold import replace_convs
from tests.helpers.devices import tolerance
from tests.helpers.models.optimized import randomise_norms


def check_has_kernels(is_fused, device):
    if is_fused and not has_fused_kernels(torch.device(device), torch.float32):
        pytest.skip("has no fused kernels of oneDNN")


@pytest.mark.parametrize("norm", ["BN", "FrozenBN", "SyncBN", "naiveSyncBN", "GN", ""])
@pytest.mark.parametrize("activation", [nn.ReLU(), torch.nn.functional.relu, nn.GELU(), None])
@pytest.mark.parametrize("is_fused", [False, True])
def test_conv_with_its_norm_and_activation(norm, activation, is_fused, device):
    check_has_kernels(is_fused, device)
    conv = Conv2d(
        16, 32, 3, 2, 1, groups=2, bias=not norm, norm=get_norm(norm, 32), activation=activation
    )
    model = nn.ModuleDict({"conv": conv}).eval().to(device)
    randomise_norms(model)
    x = torch.randn(2, 16, 13, 9, device=device)
    expected = conv(x)
    replace_convs(model, torch.float32)
    if is_fused:
        fuse_all(model)
    found = model["conv"](x)
    assert type(model["conv"]) is InferenceConv2d
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert model["conv"].has_more == (norm == "GN" or isinstance(activation, nn.GELU))
    torch.testing.assert_close(found, expected, **tolerance(device))
    other = torch.randn_like(expected)
    added = model["conv"].add(x, other.clone(), relu=True, inplace=True)
    torch.testing.assert_close(added, (expected + other).relu(), **tolerance(device))
    assert model["conv"](x[:0]).shape == expected[:0].shape


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("is_fused", [False, True])
def test_linear(relu, is_fused, device):
    check_has_kernels(is_fused, device)
    linear = nn.Linear(30, 20, device=device)
    layer = InferenceLinear(linear, relu=relu)
    layer.is_fused = is_fused
    x = torch.randn(7, 30, device=device)
    expected = linear(x).relu() if relu else linear(x)
    torch.testing.assert_close(layer(x), expected, **tolerance(device))
    assert layer(x[:0]).shape == (0, 20)
