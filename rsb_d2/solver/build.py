"""The optimizer."""

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer as build_sgd_optimizer
from timm.optim import Lamb

from ..errors import UserError
from .clipping import add_gradient_clipping
from .parameters import (
    OPTIMIZERS,
    check_decay_filter,
    decay_filter,
    optimizer_name,
    parameter_groups,
)


def build_optimizer(cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer that ``SOLVER.OPTIMIZER`` names.

    Args:
        cfg (CfgNode): ``"SGD"`` goes to Detectron2's own builder, unless ``DECAY_FILTER`` is
            ``"timm"``. ``"AdamW"`` (arXiv 1711.05101) takes ``BASE_LR``, ``BETAS`` and
            ``WEIGHT_DECAY``; ``"LAMB"`` (arXiv 1904.00962, timm's) also ``LAMB.EPS`` and
            ``LAMB.MAX_GRAD_NORM``. All of them on the groups of
            :func:`rsb_d2.solver.parameters.parameter_groups`, with gradient clipping as
            ``CLIP_GRADIENTS`` says.
        model (nn.Module): frozen parameters are left out.

    Returns:
        torch.optim.Optimizer

    Raises:
        UserError: as :func:`check_optimizer`.
    """
    check_optimizer(cfg)
    optimizer = _build_plain(cfg, model)
    add_gradient_clipping(cfg, optimizer)
    return optimizer


def _build_plain(cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
    """One that does not clip."""
    solver, name = cfg.SOLVER, optimizer_name(cfg)
    if name == "SGD" and decay_filter(cfg) == "detectron2":
        cfg = cfg.clone()
        cfg.defrost()
        cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
        return build_sgd_optimizer(cfg, model)
    params = parameter_groups(cfg, model)
    common = {"lr": solver.BASE_LR, "weight_decay": solver.WEIGHT_DECAY}
    if name == "SGD":
        return torch.optim.SGD(params, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV, **common)
    common["betas"] = tuple(solver.BETAS)
    if name == "LAMB":
        lamb = solver.LAMB
        return Lamb(params, eps=lamb.EPS, max_grad_norm=lamb.MAX_GRAD_NORM or None, **common)
    # Fused: one pass over the parameters, on the CPU too; the same update.
    return torch.optim.AdamW(params, fused=True, **common)


def check_optimizer(cfg: CfgNode) -> None:
    """Check what an optimizer is built from, before there is a model.

    Args:
        cfg (CfgNode): its ``SOLVER``.

    Raises:
        UserError: if ``SOLVER.OPTIMIZER`` is another name, ``SOLVER.BETAS`` out of range, or a key
            contradicts ``SOLVER.DECAY_FILTER``.
    """
    name, betas = optimizer_name(cfg), list(cfg.SOLVER.BETAS)
    if name not in OPTIMIZERS:
        raise UserError(f"SOLVER.OPTIMIZER: {name!r} is none of {', '.join(OPTIMIZERS)}")
    if name != "SGD" and not (len(betas) == 2 and all(0.0 <= b < 1.0 for b in betas)):
        raise UserError(f"SOLVER.BETAS: {betas} must be two numbers from 0 to below 1")
    check_decay_filter(cfg)
