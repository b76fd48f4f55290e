"""Batch norms folded into convolutions in training: equal features and gradients."""

import copy

import pytest
import torch

from rsb_d2 import TimmBackbone
from rsb_d2.modeling.norm import FoldedBatchNorm2d, FoldingConv2d, fold_norms_in_training
from tests.helpers.devices import check_same, tolerance


def make_backbones(name, freeze_at=0, device="cpu", **kwargs):
    """The same backbone twice, the second one folded, with norms of other than starting values."""
    torch.manual_seed(0)
    plain = TimmBackbone(name, freeze_at=freeze_at, **kwargs).train()
    with torch.no_grad():
        for module in plain.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2)
    plain.to(device)
    folded = copy.deepcopy(plain)
    return plain, folded, folded.fold_norms_in_training()


def check_features(expected, found):
    for feature, values in expected.items():
        check_same(found[feature], values, feature)


def run_backbone(backbone, x):
    features = backbone(x)
    sum((f * f).mean() for f in features.values()).backward()
    return features, {n: p.grad for n, p in backbone.named_parameters()}


@pytest.mark.parametrize(
    "name, number",
    [
        *(("resnet18", 20), ("seresnet50", 53)),
        *(pytest.param(n, 53, marks=pytest.mark.slow) for n in ("resnet50", "resnext50_32x4d")),
    ],
)
def test_folded_norms_have_the_same_features_and_gradients(name, number, device):
    plain, folded, count = make_backbones(name, device=device)
    assert count == number
    x = torch.randn(1, 3, 64, 64).to(device)
    # In float64 the two ways differ by rounding alone.
    features, grads = run_backbone(plain.double(), x.double())
    folded_features, folded_grads = run_backbone(folded.double(), x.double())
    for f in features:
        torch.testing.assert_close(
            folded_features[f], features[f], **tolerance(device, torch.float64)
        )
    assert all(grad is not None for grad in grads.values())
    for n in grads:
        scale = grads[n].abs().max()
        torch.testing.assert_close(
            folded_grads[n],
            grads[n],
            rtol=0,
            atol=tolerance(device, torch.float64)["atol"] * scale.item(),
        )


@pytest.mark.parametrize("is_mixed", [False, True])
def test_folding_by_stages_equals_folding_by_layers(is_mixed):
    _, by_stages, _ = make_backbones("resnet18", freeze_at=2)
    by_layers, x = copy.deepcopy(by_stages), torch.randn(2, 3, 64, 64)
    for stage in by_layers.body.children():
        stage._forward_pre_hooks.clear()
    found = []
    for backbone in (by_stages, by_layers):
        with torch.autocast("cpu", torch.bfloat16, is_mixed):
            features = backbone(x)
        sum((f.float() ** 2).mean() for f in features.values()).backward()
        grads = {n: p.grad for n, p in backbone.named_parameters() if p.grad is not None}
        assert all(getattr(m, "prepared", None) is None for m in backbone.modules())
        found.append([features, grads])
    assert len(found[0][1]) > 30
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_norms_are_folded_only_in_training(device):
    plain, folded, _ = make_backbones("resnet18", freeze_at=2, device=device)
    x = torch.randn(1, 3, 64, 64).to(device)
    with torch.no_grad():  # bit for bit
        check_features(plain(x), folded(x))
    plain.eval(), folded.eval()
    check_features(plain(x), folded(x))
    assert folded.state_dict().keys() == plain.state_dict().keys()
    assert {n for n, _ in folded.named_modules()} == {n for n, _ in plain.named_modules()}


def test_a_convolution_that_is_used_twice_is_not_folded(device):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.norm1 = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)
            self.conv2, self.norm2 = torch.nn.Conv2d(4, 4, 3), torch.nn.BatchNorm2d(4)
            self.conv3, self.norm3 = torch.nn.Conv2d(4, 4, 3), torch.nn.BatchNorm2d(4)

        def forward(self, x):
            raw = self.conv1(x)
            x = self.norm1(raw) + raw
            feature = self.conv2(x)
            return [feature, self.norm3(self.conv3(self.norm2(feature)))]

    net = Net().to(device)
    assert fold_norms_in_training(net) == 1
    assert isinstance(net.conv3, FoldingConv2d) and type(net.conv1) is type(net.conv2)
    # One with a bias, too.
    x = torch.randn(1, 3, 16, 16).to(device)
    for norm in (net.norm1, net.norm2, net.norm3):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.eval()
    with torch.no_grad():
        expected = net(x)
    torch.testing.assert_close(net(x), expected, **tolerance(device))


def saved_bytes(call):
    """Bytes of the tensors that autograd keeps for the backward pass, weights left out."""
    storages = {}

    def pack(tensor):
        if not tensor.is_leaf or not tensor.requires_grad:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        output = call()
    return sum(storages.values()), output


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_frozen_stages_build_no_graph(norm, device):
    torch.manual_seed(0)
    backbone = TimmBackbone("resnet18", freeze_at=5, norm=norm).train().to(device)
    kept, features = saved_bytes(lambda: backbone(torch.randn(1, 3, 64, 64).to(device)))
    assert kept == 0 and not any(f.requires_grad for f in features.values())
    backbone = TimmBackbone("resnet18", freeze_at=2, norm=norm).train().to(device)
    features = backbone(torch.randn(1, 3, 64, 64).to(device))
    assert [f.requires_grad for f in features.values()] == [False, True, True, True]


@pytest.mark.parametrize("how", ["in place", "loaded", "replaced", "averaged"])
def test_statistics_that_change_later_count(how):
    plain, folded, _ = make_backbones("resnet18")
    x = torch.randn(1, 3, 64, 64)
    folded(x)  # with the ones of before
    with torch.no_grad():
        for name, buffer in list(plain.named_buffers()):
            if name.endswith("running_var"):
                buffer.mul_(3)
        if how == "loaded":
            folded.load_state_dict(plain.state_dict())
        for module, other in zip(folded.modules(), plain.modules()):
            if isinstance(module, FoldedBatchNorm2d) and how != "loaded":
                if how == "in place":
                    module.running_var.mul_(3)
                elif how == "averaged":
                    torch._foreach_lerp_([module.running_var], [other.running_var], 1.0)
                else:
                    module.running_var = other.running_var.clone()
    found = folded(x)
    for name, expected in plain(x).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-4)
    (norm,) = copy.deepcopy(folded).body.conv1.norm_after
    assert "_known" in vars(folded.body.bn1) and "_known" not in vars(norm)


def test_layers_with_hooks_are_not_replaced():
    backbone = TimmBackbone("resnet18").train()
    backbone.body.conv1.register_forward_hook(lambda *_: None)
    assert backbone.fold_norms_in_training() == 19
    assert type(backbone.body.conv1) is torch.nn.Conv2d
