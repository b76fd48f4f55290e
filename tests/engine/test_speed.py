"""Compiled backbones and channels-last: what is switched on, and what stays."""

import copy

import pytest
import torch
from detectron2.modeling import build_model

from rsb_d2 import Trainer, UserError
from rsb_d2.config.check_device import check_compiler
from rsb_d2.engine.trainer import prepare_for_training
from tests.helpers.runs.switched_training import make_config


def test_compiling_keeps_names_and_copies(switch_folder):
    cfg = make_config(switch_folder, "MODEL.COMPILE", "True")
    model = build_model(cfg)
    names = list(model.state_dict())
    prepare_for_training(model, cfg)
    assert model.backbone._compiled_call_impl is not None
    assert list(model.state_dict()) == names
    assert copy.deepcopy(model).backbone._compiled_call_impl is None


def test_a_missing_compiler_is_told_in_a_line(switch_folder, monkeypatch):
    monkeypatch.setenv("PATH", str(switch_folder))
    cfg = make_config(switch_folder)
    check_compiler(cfg)
    cfg.MODEL.COMPILE = True
    with pytest.raises(UserError, match="MODEL.COMPILE needs a C\\+\\+ compiler"):
        prepare_for_training(build_model(cfg), cfg)


def test_every_convolution_gets_its_input_channels_last(switch_folder, device):
    words = ["MODEL.CHANNELS_LAST", "True", "MODEL.TIMM.NAME", "resnet18", "MODEL.DEVICE", device]
    cfg = make_config(switch_folder, *words)
    detector = Trainer.build_model(cfg).eval()
    prepare_for_training(detector, cfg)
    seen = {}

    def note(name):
        def hook(module, inputs):
            seen[name] = inputs[0].is_contiguous(memory_format=torch.channels_last)

        return hook

    for name, module in detector.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_pre_hook(note(name))
    image = (torch.rand(3, 64, 96) * 255).to(torch.uint8)
    with torch.no_grad():
        detector([{"image": image}])
    backbone = {n: ok for n, ok in seen.items() if n.startswith("backbone.")}
    first = "backbone.bottom_up.body.conv1"  # of three channels, which costs next to nothing
    assert len(backbone) > 20 and [n for n, ok in backbone.items() if not ok] in ([], [first])
