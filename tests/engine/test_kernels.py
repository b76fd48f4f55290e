"""One training step starts fewer kernels than in Detectron2, counted by torch's operators."""

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer as build_stock_optimizer
from detectron2.utils.events import EventStorage
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.models import (
    LOW_RATE,
    make_images,
    make_objects,
    our_config,
    seed_weights,
    stock_config,
    to_stock,
)
from rsb_d2.engine.signals import SignalWatch
from rsb_d2.engine.train_step import StepTrainer
from rsb_d2.engine.trainer import prepare_for_training
from rsb_d2.solver import build_optimizer

NUM_STEPS = 2  # the first one also makes what is kept
WITHOUT_KERNELS = ("empty", "new_empty", "detach", "_unsafe_view", "lift_fresh", "prim")


class KernelCount(TorchDispatchMode):
    """Counts the operators that neither return a view nor only allocate."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        returned = [r.alias_info for r in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in returned)
        name = func._schema.name.replace("::", ".").removeprefix("aten.")
        self.number += not is_view and not name.startswith(WITHOUT_KERNELS)
        return func(*args, **(kwargs or {}))


def make_batches():
    images = make_images((64, 96), 2)
    batch = [{**x, "instances": make_objects((64, 96), i)} for i, x in enumerate(images)]
    return [batch] * NUM_STEPS


def count_kernels(trainer):
    torch.manual_seed(0)  # of the proposals that are sampled
    for i in range(NUM_STEPS):
        trainer.iter = i
        with EventStorage(i), KernelCount() as count:
            trainer.run_step()
    return count.number


def set_switches(cfg, clips):
    cfg.SOLVER.BASE_LR, cfg.SOLVER.CLIP_GRADIENTS.ENABLED = LOW_RATE, clips
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "norm"
    return cfg


def make_trainers(is_mixed, clips):
    cfg = set_switches(our_config(), clips)
    ours = build_model(cfg).train()
    seed_weights(ours)
    prepare_for_training(ours, cfg)
    kwargs = {"amp_dtype": torch.bfloat16} if is_mixed else {}
    optimizer, batches = build_optimizer(cfg, ours), make_batches()
    our_trainer = StepTrainer(ours, batches, optimizer, SignalWatch(1), **kwargs)

    cfg = set_switches(stock_config(), clips)
    stock = build_model(cfg).train()
    stock.load_state_dict(to_stock(ours.state_dict()))
    optimizer = build_stock_optimizer(cfg, stock)
    for group in optimizer.param_groups:
        group["foreach"] = True  # torch's default on a GPU
    if is_mixed:  # as AMPTrainer, which computes in mixed precision on a GPU only
        stock.forward = torch.autocast("cpu", torch.bfloat16)(stock.forward)
    return our_trainer, SimpleTrainer(stock, batches, optimizer)


@pytest.mark.parametrize(
    "is_mixed, clips, share",
    [(False, False, 0.82), pytest.param(True, True, 0.6, marks=pytest.mark.slow)],
)
def test_a_step_starts_fewer_kernels_than_in_detectron2(is_mixed, clips, share):
    ours, stock = map(count_kernels, make_trainers(is_mixed, clips))
    assert 0 < ours <= share * stock
