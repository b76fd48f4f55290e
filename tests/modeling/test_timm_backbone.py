"""TimmBackbone against timm itself, autograd's graph, and Detectron2's conventions."""

import copy

import pytest
import timm
import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from rsb_d2 import TimmBackbone, UserError
from rsb_d2.modeling.norm import apply_norm_policy
from tests.helpers.devices import check_same, tolerance

# The architectures of timm's weights from the paper.
RSB_ARCHITECTURES = sorted(
    {
        name.split(".")[0]
        for name in timm.list_pretrained()
        if "2110.00476" in str(getattr(timm.get_pretrained_cfg(name), "paper_ids", ""))
    }
)
# Other families, each with something of its own: fused activations, pre-activation, a channels-last
# transformer, no feature at stride 2, timm's other kinds of feature nets.
OTHER_ARCHITECTURES = [
    "convnext_atto",
    "dla34",
    "efficientnet_b0",
    "hrnet_w18_small",
    "mobilenetv3_small_050",
    "mvitv2_tiny",
    "regnety_002",
    "resnetv2_18",
    "swin_tiny_patch4_window7_224",
    "tresnet_m",
]
LONG = ("dla34", "hrnet_w18_small", "tresnet_m", "mvitv2_tiny", "mobilenetv3_small_050")
ALL_FEATURES = ["stem", "res2", "res3", "res4", "res5"]


def images(size=64, n=1, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, 3, size, size, generator=generator).to(device)


def randomize_norms(model):
    """Norm statistics and weights that are not the identity, so that losing one shows."""
    generator = torch.Generator().manual_seed(1)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            for t, low in [(m.running_mean, -0.2), (m.running_var, 0.5), (m.weight, 0.5)]:
                t.data.copy_(torch.rand(t.shape, generator=generator) * 0.5 + low)


def timm_reference(name, device="cpu"):
    torch.manual_seed(0)
    reference = timm.create_model(name, features_only=True)
    randomize_norms(reference)
    return reference.eval().to(device)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if "101" in name or "152" in name else [])
        for name in RSB_ARCHITECTURES
    ],
)
def test_features_equal_timms_bit_for_bit(name, device):
    reference = timm_reference(name, device)
    backbone = TimmBackbone(name, ALL_FEATURES, freeze_at=2).eval().to(device)
    backbone.body.load_state_dict(reference.state_dict())
    with torch.no_grad():
        x = images(device=device)
        expected, found = reference(x), backbone(x)
    for n, p in backbone.body.named_parameters():
        assert p.requires_grad != n.startswith(("conv1.", "bn1.", "layer1.")), n
    assert list(found) == ALL_FEATURES
    for feature, (key, value) in zip(expected, found.items()):
        check_same(value, feature, key)
        spec = backbone.output_shape()[key]
        assert value.shape == (1, spec.channels, 64 // spec.stride, 64 // spec.stride)
    assert [s.stride for s in backbone.output_shape().values()] == [2, 4, 8, 16, 32]
    assert backbone.size_divisibility == 32


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in LONG else [])
        for name in OTHER_ARCHITECTURES
    ],
)
def test_features_of_other_families_equal_timms(name, device):
    reference = timm_reference(name, device)
    backbone = TimmBackbone(name, freeze_at=2).eval().to(device)
    missing, unexpected = backbone.body.load_state_dict(reference.state_dict(), strict=False)
    assert not missing
    x = images(224, device=device)
    with torch.no_grad():
        expected = dict(zip(reference.feature_info.reduction(), reference(x)))
        found = backbone(x)
    for key, value in found.items():
        stride = backbone.output_shape()[key].stride
        feature = expected[stride]
        if getattr(reference, "output_fmt", None) == "NHWC":
            feature = feature.permute(0, 3, 1, 2)
        check_same(value, feature, key)
        assert value.shape == (
            1,
            backbone.output_shape()[key].channels,
            224 // stride,
            224 // stride,
        )


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "swin_tiny_patch4_window7_224"])
def test_a_subset_of_the_features_in_any_order(name, device):
    torch.manual_seed(0)
    full = TimmBackbone(name).eval().to(device)
    some = TimmBackbone(name, ["res4", "res2"]).eval().to(device)
    _, unexpected = some.body.load_state_dict(full.body.state_dict(), strict=False)
    assert unexpected  # the layers above res4 are not built
    x = images(224, device=device)
    with torch.no_grad():
        expected, found = full(x), some(x)
    assert list(found) == list(some.output_shape()) == ["res4", "res2"]
    for key in found:
        check_same(found[key], expected[key], key)
    assert some.size_divisibility == 16
    # Every parameter that was built is one that res4 is computed with.
    grads = torch.autograd.grad(some(x)["res4"].sum(), list(some.parameters()), allow_unused=True)
    assert all(grad is not None for grad in grads)


def test_input_sizes_that_are_not_multiples_of_the_stride(device):
    backbone = TimmBackbone("resnet18", ALL_FEATURES).eval().to(device)
    with torch.no_grad():
        features = backbone(images(65, device=device))
    assert [f.shape[-1] for f in features.values()] == [33, 17, 9, 5, 3]


@pytest.mark.parametrize("name", ["resnet18d", "efficientnet_b0", "dla34"])
@pytest.mark.parametrize("freeze_at", [0, 1, 2, 5])
def test_frozen_parameters_are_those_that_autograd_finds(name, freeze_at):
    backbone = TimmBackbone(name, ALL_FEATURES, freeze_at=freeze_at)
    frozen = {n for n, p in backbone.named_parameters() if not p.requires_grad}
    for p in backbone.parameters():
        p.requires_grad = True
    expected = set()
    if freeze_at:
        feature = backbone.eval()(images())[ALL_FEATURES[freeze_at - 1]]
        names, parameters = zip(*backbone.named_parameters())
        grads = torch.autograd.grad(feature.sum(), parameters, allow_unused=True)
        expected = {n for n, grad in zip(names, grads) if grad is not None}
    assert frozen == expected
    assert bool(frozen) == bool(freeze_at)


@pytest.mark.parametrize(
    "name, stem", [("convnext_atto", "stem_"), ("swin_tiny_patch4_window7_224", "patch_embed.")]
)
def test_the_stem_of_an_architecture_without_a_stride_2_feature(name, stem):
    backbone = TimmBackbone(name, freeze_at=1)
    frozen = {n for n, p in backbone.body.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in backbone.body.named_parameters() if n.startswith(stem)}


@pytest.mark.parametrize("norm", ["FrozenBN", "BN", "SyncBN"])
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "resnetv2_18"])
def test_norm_policies_compute_the_same(name, norm, device):
    """efficientnet and resnetv2 have norm layers with a fused activation."""
    reference = timm_reference(name, device)
    backbone = TimmBackbone(name, norm="BN", norm_eval=True).to(device)
    backbone.body.load_state_dict(reference.state_dict(), strict=False)
    expected = backbone.eval()(images(device=device))
    other = TimmBackbone(name, norm=norm, norm_eval=True).to(device)
    other.load_state_dict(backbone.state_dict(), strict=False)
    with torch.no_grad():
        found = other.eval()(images(device=device))
    for key in expected:
        check_same(found[key], expected[key].detach(), key)
    kinds = {"FrozenBN": FrozenBatchNorm2d, "BN": nn.BatchNorm2d, "SyncBN": nn.SyncBatchNorm}
    norms = [m for m in other.modules() if isinstance(m, tuple(kinds.values()))]
    assert norms and all(isinstance(m, kinds[norm]) for m in norms)


def test_frozen_bn_copies_the_layers_it_replaces(device):
    model = timm_reference("efficientnet_b0", device)
    frozen = copy.deepcopy(model)
    apply_norm_policy(frozen, "FrozenBN")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in frozen.modules())
    with torch.no_grad():
        for a, b in zip(model(images(device=device)), frozen(images(device=device))):
            check_same(b, a)
    # In training Detectron2's layer computes an affine instead, to save memory.
    x = images(device=device)
    for a, b in zip(model(x), frozen.train()(x.clone().requires_grad_())):
        near = tolerance(device)["atol"] * a.abs().max().clamp(min=1).item()
        torch.testing.assert_close(a, b, rtol=1e-4, atol=near)
    on_meta = timm_reference("efficientnet_b0", "meta")  # a device besides the CPU
    apply_norm_policy(on_meta, "FrozenBN")
    assert {t.device.type for t in on_meta.state_dict().values()} == {"meta"}


def train_step(backbone):
    """One forward and backward pass in training mode; returns what changed in the norm layers."""
    before = {n: b.clone() for n, b in backbone.named_buffers()}
    device = next(backbone.parameters()).device
    features = backbone.train()(images(64, n=2, device=device))
    sum(f.square().mean() for f in features.values() if f.requires_grad).backward()
    return features, {n for n, b in backbone.named_buffers() if not torch.equal(b, before[n])}


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0"])
def test_norm_eval_fixes_statistics_and_trains_weights(name, device):
    backbone = TimmBackbone(name, norm_eval=True, freeze_at=2).to(device)
    randomize_norms(backbone)  # timm starts some at zero, which lets no gradient through
    features, changed = train_step(backbone)
    assert not changed
    trained = [
        m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d) and m.weight.requires_grad
    ]
    assert trained
    assert all(m.weight.grad.abs().sum() > 0 and m.bias.grad is not None for m in trained)
    assert all(p.grad is None for p in backbone.parameters() if not p.requires_grad)
    assert not features["res2"].requires_grad and features["res3"].requires_grad


@pytest.mark.parametrize("norm", ["BN", "SyncBN"])
def test_frozen_stages_keep_their_statistics_whatever_the_policy(norm, device):
    backbone = TimmBackbone("resnet18", norm=norm, norm_eval=False, freeze_at=2).to(device)
    features, changed = train_step(backbone)
    frozen_prefixes = ("body.bn1.", "body.layer1.")
    assert changed and not any(n.startswith(frozen_prefixes) for n in changed)
    assert {n.split(".")[1] for n in changed} == {"layer2", "layer3", "layer4"}
    assert not features["res2"].requires_grad


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("resnet51",), "no model 'resnet51'.*resnet50"),
        (("resnet50.a9_in1k",), "no model 'resnet50.a9_in1k'.*resnet50.a1_in1k"),
        (("vit_tiny_patch16_224",), "no hierarchical features.*stride 16"),
        (("hf-hub:timm/resnet50.a1_in1k",), "no model"),
        (("convnext_atto", ["stem"]), "no stem.*res2, res3, res4, res5"),
        (("hiera_tiny_224",), "'hiera_tiny_224' does not take images of any size"),
        (("inception_v3",), "'inception_v3' has .* cells for images of 288 x 352, not the "),
        (("resnet18", ["res6"]), "'res6' is not one of stem, res2"),
        (("resnet18", []), "at least one"),
        (("resnet18", ["res2", "res2"]), "once"),
        (("resnet18", ["res2"], "GN"), "MODEL.TIMM.NORM: 'GN'"),
        (("resnet18", ["res2"], "BN", True, 6), "FREEZE_AT: 6"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(UserError, match=message):
        TimmBackbone(*arguments)
