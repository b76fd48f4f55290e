"""The optimizers: groups, learning rates, steps and clipping, as in Detectron2 and timm."""

import copy

import pytest
import timm
import torch
from detectron2.config import get_cfg
from detectron2.solver import build_optimizer as build_stock_optimizer
from detectron2.solver.build import maybe_add_gradient_clipping
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from torch import nn

from rsb_d2 import TimmBackbone, UserError, add_rsb_config
from rsb_d2.config.loading import load_config
from rsb_d2.solver import build_optimizer
from rsb_d2.solver.build import solver_warnings
from tests.helpers.devices import check_same, reproducible


def make_cfg(**solver):
    cfg = get_cfg()
    add_rsb_config(cfg)
    cfg.SOLVER.OPTIMIZER = "AdamW"
    cfg.SOLVER.BASE_LR = 2e-4
    cfg.SOLVER.WEIGHT_DECAY = 0.05
    for key, value in solver.items():
        cfg.SOLVER[key] = value
    return cfg


@pytest.fixture(scope="module")
def model():
    # resnet18: batch norm; efficientnet: with a fused activation; and plain layers
    return nn.ModuleDict(
        {
            "resnet": TimmBackbone("resnet18", freeze_at=2),
            "efficientnet": TimmBackbone("mobilenetv3_small_050"),
            "fpn": nn.Sequential(nn.Conv2d(8, 8, 1), nn.GroupNorm(2, 8), nn.Linear(8, 8)),
        }
    )


def decay_of(optimizer):
    return {p: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}


def test_adamw_decays_everything_but_norms_and_has_no_frozen_parameter(model):
    optimizer = build_optimizer(make_cfg(), model)
    assert type(optimizer) is torch.optim.AdamW
    decay = decay_of(optimizer)
    norms = (nn.BatchNorm2d, nn.GroupNorm)
    of_norms = {
        p for m in model.modules() if isinstance(m, norms) for p in m.parameters(recurse=False)
    }
    frozen = 0
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert decay.pop(p) == (0.0 if p in of_norms else 0.05), name
        else:
            frozen += 1
    assert not decay and frozen == 15  # resnet18: conv1, bn1, and layer1 with its four
    assert all(g["lr"] == 2e-4 and g["betas"] == (0.9, 0.999) for g in optimizer.param_groups)


def test_norm_and_bias_keys_of_detectron2(model):
    cfg = make_cfg(WEIGHT_DECAY_NORM=0.01, WEIGHT_DECAY_BIAS=0.02, BIAS_LR_FACTOR=2.0)
    cfg.SOLVER.BETAS = [0.8, 0.9]
    optimizer = build_optimizer(cfg, model)
    groups = {p: g for g in optimizer.param_groups for p in g["params"]}
    conv, norm, linear = model["fpn"]
    found = [groups[p]["weight_decay"] for p in (conv.weight, norm.weight, linear.bias)]
    assert found == [0.05, 0.01, 0.02]
    assert groups[linear.bias]["lr"] == 4e-4 and groups[linear.weight]["lr"] == 2e-4
    assert groups[conv.weight]["betas"] == (0.8, 0.9)


@pytest.mark.parametrize("name, decay_filter", [("AdamW", "auto"), ("SGD", "auto")])
@pytest.mark.parametrize(
    "clip",
    [("norm", 0.5, 2.0), ("norm", 0.3, 1.0), ("norm", 0.1, float("inf")), ("value", 0.02, 0)],
)
def test_gradient_clipping_equals_detectron2s(name, decay_filter, clip, device):
    """Of each parameter by itself, also of those that are below the limit or have no gradient."""
    cfg = make_cfg(OPTIMIZER=name, DECAY_FILTER=decay_filter)
    limits = cfg.SOLVER.CLIP_GRADIENTS
    limits.ENABLED, (limits.CLIP_TYPE, limits.CLIP_VALUE, limits.NORM_TYPE) = True, clip
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(9, 7), nn.Linear(7, 5), nn.Linear(5, 1)).to(device)]
    models.append(copy.deepcopy(models[0]))
    ours = build_optimizer(cfg, models[0])
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
    theirs = build_optimizer(cfg, models[1])
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    theirs = maybe_add_gradient_clipping(cfg, theirs)
    x = torch.randn(4, 9).to(device)
    for model, optimizer in zip(models, (ours, theirs)):
        # The last layer has no gradient; with "value" Detectron2's own clipping fails then.
        model[: 2 + (clip[0] == "value")](x).square().sum().backward()
        unclipped = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        optimizer.step()
    for a, b in zip(*(model.parameters() for model in models)):
        assert torch.equal(a, b)
        assert (a.grad is b.grad is None) or torch.equal(a.grad, b.grad)
    grads = [p.grad for p in models[0].parameters() if p.grad is not None]
    assert any(not torch.equal(a, b) for a, b in zip(grads, unclipped))


def test_sgd_equals_detectron2s():
    cfg = make_cfg(OPTIMIZER="SGD")
    layer = nn.Linear(3, 1)
    ours, theirs = build_optimizer(cfg, layer), build_stock_optimizer(cfg, layer)
    assert type(ours) is type(theirs) is torch.optim.SGD
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize(
    "solver, message",
    [
        ({"OPTIMIZER": "Lion"}, "SOLVER.OPTIMIZER: 'Lion'"),
        ({"BETAS": [0.9]}, "SOLVER.BETAS"),
        ({"BETAS": [0.9, 1.0]}, "SOLVER.BETAS"),
    ],
)
def test_mistakes(solver, message):
    with pytest.raises(UserError, match=message):
        build_optimizer(make_cfg(**solver), nn.Linear(1, 1))


def make_lamb_cfg(*opts):
    words = [*("SOLVER.OPTIMIZER", "LAMB", "SOLVER.BASE_LR", "5e-3", "SOLVER.WEIGHT_DECAY", "0.02")]
    return load_config("", [*words, *opts])


def settings(optimizer):
    """Everything that a parameter is updated with, by parameter."""
    return {
        parameter: {k: v for k, v in group.items() if k != "params"}
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


# resnet: norms and biases; convnext: scales of layers that are neither; vit: what it names itself
@pytest.mark.parametrize("name", ["resnet18", "resnet50d", "convnext_atto", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("optimizer", ["LAMB", "AdamW", "SGD"])
def test_parameter_groups_equal_timms(name, optimizer):
    model = timm.create_model(name, num_classes=3)
    opts = ["SOLVER.OPTIMIZER", optimizer, "SOLVER.DECAY_FILTER", "timm"]
    if optimizer == "SGD":
        opts += ["SOLVER.NESTEROV", "True"]  # timm's default
    ours = build_optimizer(make_lamb_cfg(*opts), model)
    theirs = create_optimizer_v2(model, opt=optimizer.lower(), lr=5e-3, weight_decay=0.02)
    expected, found = settings(theirs), settings(ours)
    assert found.keys() == expected.keys() == set(model.parameters())
    for parameter, values in expected.items():
        values = {k: v for k, v in values.items() if k != "fused"}
        assert {k: v for k, v in found[parameter].items() if k in values} == values
    assert len(ours.param_groups) == 2
    if optimizer == "LAMB":
        assert type(ours) is type(theirs)
        # betas, eps, max_grad_norm and the switches; each group has a weight decay of its own
        assert {**ours.defaults, "weight_decay": 0.0} == theirs.defaults


def test_groups_of_a_detector_are_timms_without_frozen_layers():
    model = nn.ModuleDict(
        {"body": TimmBackbone("resnet18", freeze_at=2), "fpn": nn.Conv2d(8, 8, 1)}
    )
    found = settings(build_optimizer(make_lamb_cfg("SOLVER.BIAS_LR_FACTOR", "2.0"), model))
    expected = {
        p: group["weight_decay"]
        for group in param_groups_weight_decay(model, 0.02)
        for p in group["params"]
    }
    assert {p: s["weight_decay"] for p, s in found.items()} == expected
    assert all(p.requires_grad for p in found)
    assert found[model["fpn"].bias]["lr"] == 1e-2 and found[model["fpn"].weight]["lr"] == 5e-3


def test_steps_equal_timms(device):
    """LAMB also clips the norm of all gradients, which is above the limit here."""
    torch.manual_seed(0)
    images, labels = torch.randn(4, 3, 32, 32).to(device), torch.tensor([0, 1, 2, 1]).to(device)
    models = [timm.create_model("resnet18", num_classes=3).to(device) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    before = {name: p.detach().clone() for name, p in models[0].named_parameters()}
    ours = build_optimizer(make_lamb_cfg(), models[0])
    theirs = create_optimizer_v2(models[1], opt="lamb", lr=5e-3, weight_decay=0.02)
    norms = []
    for _ in range(3):
        for model, optimizer in zip(models, (ours, theirs)):
            with reproducible(device):  # LAMB takes the sign of what is next to nothing
                loss = 30 * nn.functional.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                norms.append(nn.utils.get_total_norm([p.grad for p in model.parameters()]))
                optimizer.step()  # older versions of timm clip the gradients in place
    assert min(norms) > 1.0
    for name, parameter in models[0].named_parameters():
        check_same(parameter.detach(), models[1].get_parameter(name).detach(), name)
        assert not torch.equal(parameter, before[name])


@pytest.mark.parametrize("key", ["WEIGHT_DECAY_NORM", "WEIGHT_DECAY_BIAS"])
def test_a_decay_that_contradicts_the_filter_is_refused(key):
    with pytest.raises(UserError, match=f"SOLVER.{key} is 0.1, but .*; write SOLVER.{key} 0.0, or"):
        build_optimizer(make_lamb_cfg(f"SOLVER.{key}", "0.1"), nn.Linear(1, 1))
    cfg = make_lamb_cfg(f"SOLVER.{key}", "0.1", "SOLVER.DECAY_FILTER", "detectron2")
    layer = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm2d(1))
    decays = [s["weight_decay"] for s in settings(build_optimizer(cfg, layer)).values()]
    assert 0.1 in decays


@pytest.mark.parametrize(
    "weights, optimizer, is_warned",
    [
        ("timm://resnet50.a1_in1k", "SGD", True),
        ("timm://resnet50.tv2_in1k", "SGD", True),
        ("zoo://resnet50_rsb_a2", "SGD", True),
        ("weights/resnet50-11ad3fa6.pth", "SGD", True),  # torchvision's second, by its own name
        ("timm://resnet50.tv_in1k", "SGD", False),
        ("timm://resnet50.a1_in1k", "AdamW", False),
        ("", "SGD", False),
    ],
)
def test_sgd_on_weights_of_a_modern_recipe_is_warned_of(caplog, weights, optimizer, is_warned):
    cfg = make_cfg(OPTIMIZER=optimizer, IMS_PER_BATCH=4)
    cfg.MODEL.WEIGHTS = weights
    detector = nn.ModuleDict({"backbone": nn.Linear(2, 2)})
    build_optimizer(cfg, detector)
    warned = [r.getMessage() for r in caplog.records if "SOLVER.OPTIMIZER" in r.getMessage()]
    assert len(warned) == is_warned
    if is_warned:  # the published rate, for the config's batch
        assert "SOLVER.OPTIMIZER AdamW SOLVER.BASE_LR 5e-05 SOLVER.WEIGHT_DECAY 0.05" in warned[0]


@pytest.mark.parametrize(
    "rate, meta_architecture, warned",
    [
        (0.0, "GeneralizedRCNN", "nothing is trained"),
        (0.002, "GeneralizedRCNN", "more than ten times 5e-05"),
        (0.0005, "GeneralizedRCNN", ""),
        (0.0005, "RetinaNet", "more than ten times 2.5e-05"),
    ],
)
def test_a_rate_far_from_the_published_one_is_warned_of(rate, meta_architecture, warned):
    cfg = make_cfg(BASE_LR=rate, IMS_PER_BATCH=4)
    cfg.MODEL.META_ARCHITECTURE = meta_architecture
    found = solver_warnings(cfg)
    assert len(found) == bool(warned) and all(warned in line for line in found)
