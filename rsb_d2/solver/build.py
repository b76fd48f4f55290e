"""The optimizer."""

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer as build_sgd_optimizer
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping

from ..errors import UserError


def build_optimizer(cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer that ``SOLVER.OPTIMIZER`` names.

    Args:
        cfg (CfgNode): ``"SGD"`` goes to Detectron2's own builder. ``"AdamW"`` (arXiv 1711.05101)
            takes ``BASE_LR``, ``BETAS`` and ``WEIGHT_DECAY`` on Detectron2's own parameter groups
            (``WEIGHT_DECAY_NORM``, ``WEIGHT_DECAY_BIAS``, ``BIAS_LR_FACTOR``), with gradient
            clipping as ``CLIP_GRADIENTS`` says.
        model (nn.Module): frozen parameters are left out.

    Returns:
        torch.optim.Optimizer

    Raises:
        UserError: if ``SOLVER.OPTIMIZER`` is another name or ``SOLVER.BETAS`` out of range.
    """
    if cfg.SOLVER.OPTIMIZER == "SGD":
        return build_sgd_optimizer(cfg, model)
    if cfg.SOLVER.OPTIMIZER != "AdamW":
        raise UserError(f"SOLVER.OPTIMIZER: {cfg.SOLVER.OPTIMIZER!r} is neither SGD nor AdamW")
    betas = tuple(cfg.SOLVER.BETAS)
    if len(betas) != 2 or not all(0.0 <= beta < 1.0 for beta in betas):
        raise UserError(f"SOLVER.BETAS: {list(betas)} must be two numbers from 0 to below 1")
    params = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )
    return maybe_add_gradient_clipping(cfg, torch.optim.AdamW)(
        params,
        lr=cfg.SOLVER.BASE_LR,
        betas=betas,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        fused=True,  # one pass over the parameters, on the CPU too; the same update
    )
