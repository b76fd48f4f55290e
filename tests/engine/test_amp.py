"""Mixed precision: its type, and the trainer that it takes over."""

import torch
from detectron2.engine import AMPTrainer as Detectron2AMPTrainer

from rsb_d2.config.check_device import check_amp
from rsb_d2.engine.amp import AMPTrainer, amp_dtype
from tests.helpers.runs.switched_training import SwitchedTrainer, make_config


def test_the_precision_of_auto(switch_folder, monkeypatch):
    cfg = make_config(switch_folder)
    cfg.SOLVER.AMP.ENABLED = True
    for name, dtype in [("bfloat16", torch.bfloat16), ("float16", torch.float16)]:
        cfg.SOLVER.AMP.DTYPE = name
        assert amp_dtype(cfg) is dtype
    cfg.SOLVER.AMP.DTYPE, cfg.MODEL.DEVICE = "auto", "cuda"
    for supported, dtype in [(True, torch.bfloat16), (False, torch.float16)]:
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **k: supported)  # noqa: B023
        assert amp_dtype(cfg) is dtype
        check_amp(cfg)
        assert cfg.SOLVER.AMP.ENABLED


def test_amp_takes_over_the_trainer_as_it_is(switch_folder, device):
    opts = ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16", "MODEL.DEVICE", device]
    cfg = make_config(switch_folder, *opts)
    trainer = SwitchedTrainer(cfg)
    inner = trainer._trainer
    assert type(inner) is AMPTrainer and isinstance(inner, Detectron2AMPTrainer)
    assert inner.model is trainer.model and inner.optimizer is trainer.optimizer
    assert trainer.state_dict()["_trainer"]["grad_scaler"] == {}
    dtypes = set()
    trainer.model.backbone.fpn_output2.register_forward_hook(lambda m, i, o: dtypes.add(o.dtype))
    trainer.max_iter = 1
    trainer.train()
    assert dtypes == {torch.bfloat16}
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert not torch.is_autocast_enabled(torch.device(device).type)

    # What a trainer with another precision has saved is taken, too, and the other way round.
    state = trainer.state_dict()
    state["_trainer"]["grad_scaler"] = torch.amp.GradScaler(device, init_scale=8.0).state_dict()
    trainer.load_state_dict(state)
    half = AMPTrainer(inner, torch.float16)
    half.load_state_dict(state["_trainer"])
    assert half.grad_scaler.get_scale() == 8.0
    assert half.state_dict()["grad_scaler"]["scale"] == 8.0
    del state["_trainer"]["grad_scaler"]
    half.load_state_dict(state["_trainer"])
    assert half.grad_scaler.get_scale() == 8.0


def test_float16_scales_its_gradients(switch_folder, device):
    """The scale is in the checkpoint, and the step is taken with gradients without it."""
    opts = ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "float16", "MODEL.DEVICE", device]
    trainer = SwitchedTrainer(make_config(switch_folder, *opts))
    scaler = trainer._trainer.grad_scaler
    assert scaler.is_enabled() and scaler.get_scale() == 65536.0
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.max_iter = 2
    trainer.train()
    state = trainer.state_dict()["_trainer"]["grad_scaler"]
    assert state["scale"] == scaler.get_scale() <= 65536.0
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    moved = [n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])]
    assert state["_growth_tracker"] == 0 or len(moved) > 20  # no step where one has overflowed
