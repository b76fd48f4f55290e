"""Convolutions by products of matrices, beside torch's own."""

import copy
from typing import Any, Dict

import pytest
import torch
from detectron2.layers import Conv2d, get_norm
from detectron2.modeling import build_model
from torch import nn

from rsb_d2.addons.accelerate import convolution, optimize_for_inference
from rsb_d2.addons.accelerate.convolution import convolve_by_products
from rsb_d2.engine.trainer import prepare_for_training
from tests.helpers.small_detector import make_config

WIDE = 128
KINDS: Dict[str, Dict[str, Any]] = {
    "3 x 3": dict(kernel_size=3, padding=1),
    "3 x 3, stride 2": dict(kernel_size=3, padding=1, stride=2, bias=False),
    "1 x 1": dict(kernel_size=1),
    "1 x 1, no bias": dict(kernel_size=1, bias=False),
    "1 x 1, stride 2": dict(kernel_size=1, stride=2, bias=False),
    "1 x 1, padded": dict(kernel_size=1, padding=1),
    "oblong, dilated": dict(kernel_size=(3, 5), padding=(2, 1), stride=(2, 1), dilation=(2, 3)),
    "2 x 2, nothing around": dict(kernel_size=2, stride=2),
}


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_torchs(kind, layout):
    torch.manual_seed(0)
    stock = nn.Conv2d(WIDE, WIDE + 8, **KINDS[kind]).to(memory_format=layout)
    ours = copy.deepcopy(stock)
    convolve_by_products(ours)
    assert type(ours) is convolution.ProductConv2d
    exact = copy.deepcopy(stock).double()
    x = torch.randn(3, WIDE, 11, 14).contiguous(memory_format=layout)

    def run(conv, x):
        x = x.clone(memory_format=torch.preserve_format).requires_grad_()
        y = conv(x)
        weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
        return y.detach(), *torch.autograd.grad((y * weights).sum(), [x, *conv.parameters()])

    for got, want, reference in zip(run(ours, x), run(stock, x), run(exact, x.double())):
        assert got.shape == want.shape
        error = (got - reference).abs().max() / reference.abs().max()
        assert error < 3e-6
        if layout is torch.channels_last and got.dim() == 4:
            assert got.is_contiguous(memory_format=layout)


def test_detectron2s_layer_keeps_its_norm_and_activation():
    torch.manual_seed(0)
    stock = Conv2d(
        WIDE, WIDE, 3, padding=1, bias=False, norm=get_norm("BN", WIDE), activation=nn.ReLU()
    )
    ours = copy.deepcopy(stock)
    convolve_by_products(ours)
    assert type(ours) is convolution.ProductDetectron2Conv2d
    assert ours.state_dict().keys() == stock.state_dict().keys()
    x = torch.randn(2, WIDE, 7, 7)
    results = []
    for conv in (stock, ours):
        y = conv(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), list(conv.parameters()))])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_where_nothing_is_to_be_gained_torchs_own_is_called(monkeypatch):
    conv = nn.Conv2d(WIDE, WIDE, 3, padding=1)
    stock = copy.deepcopy(conv)
    convolve_by_products(conv)

    def never(*args):
        raise AssertionError("a product")

    monkeypatch.setattr(convolution._WeightGradientByProducts, "apply", never)
    x = torch.randn(1, WIDE, 5, 5)
    with pytest.raises(AssertionError, match="a product"):
        conv(x)
    with torch.no_grad():
        assert torch.equal(conv(x), stock(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(conv(x), stock(x))
    assert conv(x[:0]).shape == (0, WIDE, 5, 5)


class Other(nn.Conv2d):
    """Somebody's own, whose forward is not known."""


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(WIDE - 1, WIDE, 3),
        nn.Conv2d(WIDE, WIDE - 1, 3),
        nn.Conv2d(2 * WIDE, 2 * WIDE, 3, groups=2),
        nn.Conv2d(WIDE, WIDE, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(WIDE, WIDE, 3, padding="same"),
        nn.Conv2d(WIDE, WIDE, 3, dtype=torch.bfloat16),
        nn.Conv2d(WIDE, WIDE, 3, device="meta"),
        nn.ConvTranspose2d(WIDE, WIDE, 3),
        Other(WIDE, WIDE, 3),
    ],
    ids=str,
)
def test_what_it_is_not_for_stays(conv):
    before = type(conv)
    convolve_by_products(conv)
    assert type(conv) is before


def test_a_trainers_model_is_optimized_like_any_other():
    torch.manual_seed(0)
    cfg = make_config()
    cfg.MODEL.FPN.OUT_CHANNELS = WIDE
    model = build_model(cfg).eval()
    changed = copy.deepcopy(model)
    convolve_by_products(changed)
    found = [type(m) for m in changed.modules()]
    assert {convolution.ProductConv2d, convolution.ProductDetectron2Conv2d} <= set(found)
    kinds = [[type(m) for m in optimize_for_inference(m).modules()] for m in (model, changed)]
    assert kinds[0] == kinds[1]
    assert [type(m) for m in changed.modules()] == found


@pytest.mark.parametrize(
    "capability, layout, device, takes",
    [
        ("AVX2", True, "cpu", True),
        ("AVX2", False, "cpu", False),
        ("AVX2", True, "cuda", False),
        ("AVX512", True, "cpu", False),
    ],
)
def test_a_training_takes_it_where_the_processor_gains(
    monkeypatch, capability, layout, device, takes
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    cfg = make_config(device=device)
    cfg.MODEL.CHANNELS_LAST = layout
    model = nn.Sequential(nn.Conv2d(WIDE, WIDE, 3))
    prepare_for_training(model, cfg)
    assert isinstance(model[0], convolution.ProductConv2d) == takes
