"""Automatic mixed precision in bfloat16 or float16, on a GPU or in bfloat16 on the CPU."""

import logging
from typing import Any, Dict, List, Mapping

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer as Detectron2AMPTrainer
from detectron2.engine import DefaultTrainer, SimpleTrainer

from ..config.check_device import AMP_DTYPES
from ..solver.accumulation import AccumulatingTrainer

logger = logging.getLogger(__name__)


def amp_dtype(cfg: CfgNode) -> torch.dtype:
    """What ``SOLVER.AMP.DTYPE`` stands for on ``MODEL.DEVICE``.

    Args:
        cfg (CfgNode): after :func:`rsb_d2.config.check_device.check_amp`.

    Returns:
        torch.dtype: for ``"auto"`` and ``"native"`` bfloat16 where the GPU computes in it, else
        float16.
    """
    name = cfg.SOLVER.AMP.DTYPE
    if name not in ("auto", "native"):
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


class AMPTrainer(AccumulatingTrainer, Detectron2AMPTrainer):
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
        super().__init__(trainer)
        self.dtype = dtype
        self.grad_scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16)

    def losses(self, batch: List[dict]) -> Dict[str, torch.Tensor]:
        with torch.autocast(self.device.type, self.dtype):
            return super().losses(batch)

    def backward(self, loss: torch.Tensor) -> None:
        self.grad_scaler.scale(loss).backward()

    def step(self) -> None:
        # Once, of all parts together, and before the optimizer clips: a fused one would be handed
        # the scaled gradients, and clip those.
        self.grad_scaler.unscale_(self.optimizer)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> Dict[str, Any]:
        return {**SimpleTrainer.state_dict(self), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Also takes the state of a trainer without a scaler, which then starts anew."""
        SimpleTrainer.load_state_dict(self, state_dict)
        if state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
