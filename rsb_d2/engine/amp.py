"""Automatic mixed precision in bfloat16 or float16, on a GPU or in bfloat16 on the CPU."""

import logging
import time
from typing import Any, Dict, Mapping

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer as Detectron2AMPTrainer
from detectron2.engine import DefaultTrainer, SimpleTrainer

from ..config.check_device import AMP_DTYPES

logger = logging.getLogger(__name__)


def amp_dtype(cfg: CfgNode) -> torch.dtype:
    """What ``SOLVER.AMP.DTYPE`` stands for on ``MODEL.DEVICE``.

    Args:
        cfg (CfgNode): after :func:`rsb_d2.config.check_device.check_amp`.

    Returns:
        torch.dtype: for ``"auto"`` bfloat16 where the GPU computes in it, else float16.
    """
    name = cfg.SOLVER.AMP.DTYPE
    if name != "auto":
        return AMP_DTYPES[name]
    has_bfloat16 = not cfg.MODEL.DEVICE.startswith("cuda") or torch.cuda.is_bf16_supported(
        including_emulation=False
    )
    return torch.bfloat16 if has_bfloat16 else torch.float16


def use_amp(trainer: DefaultTrainer, cfg: CfgNode) -> None:
    """Let a trainer compute in mixed precision if ``SOLVER.AMP.ENABLED`` says so.

    Args:
        trainer (DefaultTrainer): constructed; its inner trainer is replaced.
        cfg (CfgNode): after :func:`rsb_d2.config.check_device.check_amp`.
    """
    if cfg.SOLVER.AMP.ENABLED:
        trainer._trainer = AMPTrainer(trainer._trainer, amp_dtype(cfg))


class AMPTrainer(Detectron2AMPTrainer):
    """Detectron2's ``AMPTrainer`` for either precision, which also computes on a CPU.

    bfloat16 has the range of float32, so its gradients need no scaling: there is a scaler for
    float16 alone. Its state is part of the checkpoint.
    """

    def __init__(self, trainer: SimpleTrainer, dtype: torch.dtype):
        """
        Args:
            trainer (SimpleTrainer): to take the place of, with its model, optimizer and loader.
            dtype (torch.dtype): ``torch.bfloat16`` or ``torch.float16``.
        """
        # Not by the parent's constructor, which would start a second pass over the data.
        vars(self).update(vars(trainer))
        self.dtype = dtype
        self.device = next(self.model.parameters()).device.type
        self.grad_scaler = torch.amp.GradScaler(self.device, enabled=dtype == torch.float16)

    def run_step(self) -> None:
        assert self.model.training, "[AMPTrainer] model was changed to eval mode!"
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        with torch.autocast(self.device, self.dtype):
            loss_dict = self.model(data)
            if isinstance(loss_dict, torch.Tensor):
                loss_dict = {"total_loss": loss_dict}
            losses = sum(loss_dict.values())

        self.optimizer.zero_grad()
        self.grad_scaler.scale(losses).backward()
        self._write_metrics(loss_dict, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> Dict[str, Any]:
        return {**SimpleTrainer.state_dict(self), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Also takes the state of a trainer without a scaler, which then starts anew."""
        SimpleTrainer.load_state_dict(self, state_dict)
        if state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
