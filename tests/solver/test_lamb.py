"""LAMB, and which parameters are decayed, beside what timm's train.py builds."""

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from torch import nn

from rsb_d2 import TimmBackbone, UserError
from rsb_d2.config.loading import load_config
from rsb_d2.solver import build_optimizer
from tests.helpers.devices import check_same, reproducible


def make_cfg(*opts):
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
def test_the_groups_are_timms(name, optimizer):
    model = timm.create_model(name, num_classes=3)
    opts = ["SOLVER.OPTIMIZER", optimizer, "SOLVER.DECAY_FILTER", "timm"]
    if optimizer == "SGD":
        opts += ["SOLVER.NESTEROV", "True"]  # timm's default
    ours = build_optimizer(make_cfg(*opts), model)
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


def test_auto_is_timms_filter_for_lamb_alone():
    model = timm.create_model("resnet18", num_classes=3)
    decays = [
        {p: s["weight_decay"] for p, s in settings(build_optimizer(cfg, model)).items()}
        for cfg in (make_cfg(), make_cfg("SOLVER.OPTIMIZER", "AdamW"))
    ]
    assert [decay[model.fc.bias] for decay in decays] == [0.0, 0.02]
    assert [decay[model.bn1.weight] for decay in decays] == [0.0, 0.0]
    assert [decay[model.fc.weight] for decay in decays] == [0.02, 0.02]


def test_a_detector_has_the_groups_of_timm_without_its_frozen_layers():
    model = nn.ModuleDict(
        {"body": TimmBackbone("resnet18", freeze_at=2), "fpn": nn.Conv2d(8, 8, 1)}
    )
    found = settings(build_optimizer(make_cfg("SOLVER.BIAS_LR_FACTOR", "2.0"), model))
    expected = {
        p: group["weight_decay"]
        for group in param_groups_weight_decay(model, 0.02)
        for p in group["params"]
    }
    assert {p: s["weight_decay"] for p, s in found.items()} == expected
    assert all(p.requires_grad for p in found)
    assert found[model["fpn"].bias]["lr"] == 1e-2 and found[model["fpn"].weight]["lr"] == 5e-3


def test_steps_are_timms(device):
    """With clipping of the whole gradient, which is long enough to be clipped."""
    torch.manual_seed(0)
    images, labels = torch.randn(4, 3, 32, 32).to(device), torch.tensor([0, 1, 2, 1]).to(device)
    models = [timm.create_model("resnet18", num_classes=3).to(device) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    before = {name: p.detach().clone() for name, p in models[0].named_parameters()}
    ours = build_optimizer(make_cfg(), models[0])
    theirs = create_optimizer_v2(models[1], opt="lamb", lr=5e-3, weight_decay=0.02)
    norms = []
    for _ in range(3):
        for model, optimizer in zip(models, (ours, theirs)):
            with reproducible(device):  # LAMB takes the sign of what is next to nothing
                loss = 30 * nn.functional.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        norms.append(nn.utils.get_total_norm([p.grad for p in models[0].parameters()]))
    assert min(norms) > 1.0
    for name, parameter in models[0].named_parameters():
        check_same(parameter.detach(), models[1].get_parameter(name).detach(), name)
        assert not torch.equal(parameter, before[name])


def test_no_limit_of_the_norm_and_clipping_of_each_parameter():
    layer = nn.Linear(3, 1, bias=False)
    assert (
        build_optimizer(make_cfg("SOLVER.LAMB.MAX_GRAD_NORM", "0.0"), layer).defaults[
            "max_grad_norm"
        ]
        is None
    )
    opts = ["SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm"]
    optimizer = build_optimizer(
        make_cfg(*opts, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.5", "SOLVER.LAMB.EPS", "1e-3"), layer
    )
    assert isinstance(optimizer, timm.optim.Lamb) and optimizer.defaults["eps"] == 1e-3
    layer(torch.tensor([[10.0, 0.0, 0.0]])).sum().backward()
    optimizer.step()
    torch.testing.assert_close(layer.weight.grad.norm(), torch.tensor(0.5))


@pytest.mark.parametrize("key", ["WEIGHT_DECAY_NORM", "WEIGHT_DECAY_BIAS"])
def test_a_decay_that_the_filter_leaves_out_is_refused(key):
    with pytest.raises(UserError, match=f"SOLVER.{key} is 0.1, but .*; write SOLVER.{key} 0.0, or"):
        build_optimizer(make_cfg(f"SOLVER.{key}", "0.1"), nn.Linear(1, 1))
    cfg = make_cfg(f"SOLVER.{key}", "0.1", "SOLVER.DECAY_FILTER", "detectron2")
    layer = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm2d(1))
    decays = [s["weight_decay"] for s in settings(build_optimizer(cfg, layer)).values()]
    assert 0.1 in decays
