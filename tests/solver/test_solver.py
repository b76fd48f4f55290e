"""The optimizer's parameter groups, learning rate and clipping."""

import copy

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn

from rsb_d2 import TimmBackbone, UserError, add_rsb_config
from rsb_d2.solver import build_optimizer


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
    # resnet18: batch norm; efficientnet: with a fused activation; both beside plain layers
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


def test_norm_and_bias_keys_are_detectron2s(model):
    cfg = make_cfg(WEIGHT_DECAY_NORM=0.01, WEIGHT_DECAY_BIAS=0.02, BIAS_LR_FACTOR=2.0)
    cfg.SOLVER.BETAS = [0.8, 0.9]
    optimizer = build_optimizer(cfg, model)
    groups = {p: g for g in optimizer.param_groups for p in g["params"]}
    conv, norm, linear = model["fpn"]
    found = [groups[p]["weight_decay"] for p in (conv.weight, norm.weight, linear.bias)]
    assert found == [0.05, 0.01, 0.02]
    assert groups[linear.bias]["lr"] == 4e-4 and groups[linear.weight]["lr"] == 2e-4
    assert groups[conv.weight]["betas"] == (0.8, 0.9)


def test_one_step_is_the_papers_formula():
    """Decoupled decay (arXiv 1711.05101, algorithm 2): p <- (1 - lr wd) p - lr m / (sqrt v + e)."""
    layer = nn.Linear(3, 1, bias=False)
    before = layer.weight.detach().clone()
    optimizer = build_optimizer(make_cfg(), layer)
    layer(torch.tensor([[1.0, -2.0, 3.0]])).sum().backward()
    optimizer.step()
    sign = torch.tensor([[1.0, -1.0, 1.0]])  # after one step m / sqrt v is the gradient's sign
    torch.testing.assert_close(layer.weight, before * (1 - 2e-4 * 0.05) - 2e-4 * sign)


@pytest.mark.parametrize(
    "name, decay_filter", [("AdamW", "auto"), ("SGD", "auto"), ("SGD", "timm")]
)
@pytest.mark.parametrize(
    "clip",
    [("norm", 0.5, 2.0), ("norm", 0.3, 1.0), ("norm", 0.1, float("inf")), ("value", 0.02, 0)],
)
def test_gradient_clipping_is_detectron2s(name, decay_filter, clip, device):
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


def test_sgd_is_detectron2s():
    from detectron2.solver import build_optimizer as stock

    cfg = make_cfg(OPTIMIZER="SGD")
    layer = nn.Linear(3, 1)
    ours, theirs = build_optimizer(cfg, layer), stock(cfg, layer)
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
