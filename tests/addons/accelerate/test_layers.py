"""Layers for inference compared with the stock ones, and which batch norms are folded."""

import copy

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d, get_norm
from timm.layers import BatchNormAct2d
from torch import nn

from rsb_d2 import TimmBackbone, optimize_for_inference
from rsb_d2.addons.accelerate.layers import (
    InferenceConv2d,
    InferenceLinear,
    can_fold,
    fold_net,
    fold_norm,
    fuse_all,
    has_fused_kernels,
    replace_convs,
)
from rsb_d2.modeling.norm import FoldedBatchNorm2d
from tests.helpers.devices import tolerance
from tests.helpers.models.optimized import randomise_norms


def check_has_kernels(is_fused, device):
    if is_fused and not has_fused_kernels(torch.device(device), torch.float32):
        pytest.skip("has no fused kernels of oneDNN")


@pytest.mark.parametrize("norm", ["BN", "FrozenBN", "naiveSyncBN", "GN", ""])
@pytest.mark.parametrize("activation", [nn.ReLU(), torch.nn.functional.relu, nn.GELU()])
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


def test_fold_norm_leaves_the_convolution_as_it_was(device):
    conv, norm = nn.Conv2d(4, 8, 3).to(device), nn.BatchNorm2d(8).eval().to(device)
    randomise_norms(nn.Sequential(norm))
    before = copy.deepcopy(conv.state_dict())
    folded = fold_norm(conv, norm)
    x = torch.randn(1, 4, 5, 5, device=device)
    torch.testing.assert_close(folded(x), norm(conv(x)), **tolerance(device))
    assert all(torch.equal(before[k], v) for k, v in conv.state_dict().items())


def test_a_norm_without_running_statistics_is_not_folded():
    assert not can_fold(nn.BatchNorm2d(4, track_running_stats=False))
    assert not can_fold(None) and not can_fold(nn.GroupNorm(2, 4))
    assert can_fold(FrozenBatchNorm2d(4)) and can_fold(BatchNormAct2d(4))


class _TwoReaders(nn.Module):
    """A convolution whose output goes to a norm and elsewhere, and one that is used twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.twice, self.norm2, self.norm3 = (
            nn.Conv2d(4, 4, 1),
            nn.BatchNorm2d(4),
            nn.BatchNorm2d(4),
        )

    def forward(self, x):
        y = self.conv(x)
        y = y + self.norm(y)
        return self.norm2(self.twice(y)) + self.norm3(self.twice(x))


def test_outputs_that_are_read_elsewhere_are_not_folded():
    model = _TwoReaders().eval()
    randomise_norms(model)
    x = torch.randn(1, 4, 3, 3)
    expected = model(x)
    assert fold_net(model, 4, torch.float32) == 0
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "name, all_folded",
    [
        *(("resnet18", True), ("resnet26d", True), ("resnext26ts", True), ("regnety_002", True)),
        *(("mobilenetv3_small_050", True), ("convnext_atto", False)),
        *(
            pytest.param(*of, marks=pytest.mark.slow)
            for of in (
                *(("seresnet50", True), ("efficientnet_b0", True), ("hrnet_w18_small", True)),
                *(("densenet121", False), ("resnetv2_50d_gn", False)),
                ("swin_tiny_patch4_window7_224", False),
            )
        ),
    ],
)
def test_backbones_of_timm(name, all_folded, device):
    backbone = TimmBackbone(name, out_features=["res3", "res4", "res5"]).eval().to(device)
    randomise_norms(backbone)
    x = torch.randn(1, 3, 96, 64, device=device)
    expected = backbone(x)
    cfg_model = nn.Module()
    cfg_model.backbone = backbone
    fast = optimize_for_inference(cfg_model)
    found = fast.backbone(x)
    for feature, values in expected.items():
        scale = values.abs().max().item()
        near = tolerance(device, times=scale)
        torch.testing.assert_close(found[feature], values, rtol=1e-4, atol=near["atol"])
    if all_folded:
        assert not any(can_fold(m) for m in fast.modules())
    reduced = optimize_for_inference(cfg_model, torch.bfloat16).backbone(x)
    for feature, values in expected.items():
        assert reduced[feature].dtype == torch.bfloat16
        error = (reduced[feature].float() - values).norm() / values.norm()
        assert error < 0.1


def test_a_backbone_from_a_trainer(device):
    model = nn.Module()
    model.backbone = TimmBackbone("resnet18", ["res2", "res5"], "BN", True, 0).to(device)
    randomise_norms(model.backbone)
    model.backbone.fold_norms_in_training()
    model.train()
    fast = optimize_for_inference(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fast.modules())
    assert any(isinstance(m, FoldedBatchNorm2d) for m in model.modules()) and model.training
    x = torch.randn(1, 3, 96, 64, device=device)
    expected = model.backbone.eval()(x)
    for feature, values in fast.backbone(x).items():
        torch.testing.assert_close(values, expected[feature], rtol=1e-4, atol=1e-4)
