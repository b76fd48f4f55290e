"""The optimizer of a config: parameter groups, optimizer and gradient clipping."""

import logging
from typing import Any, Dict, List, Set

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer as build_stock_optimizer
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import reduce_param_groups
from timm.optim import Lamb, param_groups_weight_decay
from torch import nn

from ..checkpoint.sources import has_modern_recipe
from ..errors import UserError

logger = logging.getLogger(__name__)

OPTIMIZERS = ("SGD", "AdamW", "LAMB")


def optimizer_name(cfg: CfgNode) -> str:
    """Return ``SOLVER.OPTIMIZER`` in the spelling of :data:`OPTIMIZERS`; Mask2Former has ADAMW."""
    given = cfg.SOLVER.OPTIMIZER
    return next((name for name in OPTIMIZERS if name.lower() == str(given).lower()), given)


def decay_filter(cfg: CfgNode) -> str:
    """Return ``"detectron2"`` or ``"timm"``: ``SOLVER.DECAY_FILTER`` without ``"auto"``."""
    if cfg.SOLVER.DECAY_FILTER != "auto":
        return cfg.SOLVER.DECAY_FILTER
    return "timm" if optimizer_name(cfg) == "LAMB" else "detectron2"


def check_optimizer(cfg: CfgNode) -> None:
    """Check the keys of the optimizer, before there is a model."""
    solver, name, betas = cfg.SOLVER, optimizer_name(cfg), list(cfg.SOLVER.BETAS)
    if name not in OPTIMIZERS:
        raise UserError(f"SOLVER.OPTIMIZER: {name!r} is not one of {', '.join(OPTIMIZERS)}")
    if name != "SGD" and not (len(betas) == 2 and all(0.0 <= b < 1.0 for b in betas)):
        raise UserError(f"SOLVER.BETAS: {betas} must be two numbers from 0 to below 1")
    for key in ("WEIGHT_DECAY_NORM", "WEIGHT_DECAY_BIAS"):
        if decay_filter(cfg) == "timm" and solver[key]:
            raise UserError(
                f"SOLVER.{key} is {solver[key]}, but SOLVER.DECAY_FILTER {solver.DECAY_FILTER} "
                f"with {solver.OPTIMIZER} decays no norms and no biases; write SOLVER.{key} 0.0, "
                "or SOLVER.DECAY_FILTER detectron2"
            )


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer that ``SOLVER.OPTIMIZER`` names.

    Args:
        cfg (CfgNode): ``"SGD"`` is built by Detectron2, unless ``DECAY_FILTER`` is ``"timm"``.
            ``"AdamW"`` (arXiv 1711.05101) reads ``BASE_LR``, ``BETAS`` and ``WEIGHT_DECAY``;
            ``"LAMB"`` (arXiv 1904.00962, timm's) also ``LAMB.EPS`` and ``LAMB.MAX_GRAD_NORM``. All
            use the groups of :func:`parameter_groups` and clip by ``CLIP_GRADIENTS``.
        model (nn.Module): frozen parameters are left out.

    Returns:
        torch.optim.Optimizer

    Raises:
        UserError: as :func:`check_optimizer`.
    """
    check_optimizer(cfg)
    if hasattr(model, "backbone"):
        for warning in solver_warnings(cfg):
            logger.warning(warning)
    optimizer = _build_unclipped(cfg, model)
    if cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        _clip_before_steps(cfg, optimizer)
    return optimizer


def rate_by_rule(cfg: CfgNode) -> float | None:
    """Return the published learning rate of a detector, in proportion to the config's batch.

    Linear scaling (arXiv 1706.02677) of AdamW's 0.0002 for 16 images (OpenMMLab's
    configs/resnet_strikes_back) or SGD's 0.02 (Detectron2); half of it for RetinaNet. None for
    optimizers without a published rate.
    """
    rate = {"AdamW": 0.0002, "SGD": 0.02}.get(optimizer_name(cfg))
    if rate is None:
        return None
    if "RetinaNet" in cfg.MODEL.META_ARCHITECTURE:
        rate /= 2
    return rate * cfg.SOLVER.IMS_PER_BATCH / 16


def solver_warnings(cfg: CfgNode) -> List[str]:
    """Return likely mistakes in the optimizer of a detector, in a line each.

    They are SGD with weights that need AdamW (:func:`has_modern_recipe`), a rate of zero, and a
    rate of more than ten times :func:`rate_by_rule`.
    """
    solver, name, rule = cfg.SOLVER, optimizer_name(cfg), rate_by_rule(cfg)
    warnings = []
    if name == "SGD" and has_modern_recipe(cfg.MODEL.WEIGHTS):
        warnings.append(
            f"SOLVER.OPTIMIZER is SGD, but detectors from {cfg.MODEL.WEIGHTS} were published with "
            "AdamW only, and several public reports have lower AP with SGD than from older "
            f"weights; write SOLVER.OPTIMIZER AdamW SOLVER.BASE_LR {rule / 100:g} "
            "SOLVER.WEIGHT_DECAY 0.05"  # AdamW's published rate is a hundredth of SGD's
        )
    if solver.BASE_LR == 0:
        warnings.append("SOLVER.BASE_LR is 0: nothing is trained")
    elif rule and solver.BASE_LR > 10.0001 * rule:  # a tenfold rate may be off by rounding
        warnings.append(
            f"SOLVER.BASE_LR {solver.BASE_LR:g} is more than ten times {rule:g}, the published "
            f"rate of {name} for {solver.IMS_PER_BATCH} images"
        )
    return warnings


def _build_unclipped(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    solver, name = cfg.SOLVER, optimizer_name(cfg)
    if name == "SGD" and decay_filter(cfg) == "detectron2":
        cfg = cfg.clone()
        cfg.defrost()
        cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
        return build_stock_optimizer(cfg, model)
    params = parameter_groups(cfg, model)
    common = {"lr": solver.BASE_LR, "weight_decay": solver.WEIGHT_DECAY}
    if name == "SGD":
        return torch.optim.SGD(params, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV, **common)
    common["betas"] = tuple(solver.BETAS)
    if name == "LAMB":
        lamb = solver.LAMB
        return Lamb(params, eps=lamb.EPS, max_grad_norm=lamb.MAX_GRAD_NORM or None, **common)
    # Fused: one pass over the parameters, also on the CPU; the update is the same.
    return torch.optim.AdamW(params, fused=True, **common)


def parameter_groups(cfg: CfgNode, model: nn.Module) -> List[Dict[str, Any]]:
    """Group the trainable parameters by learning rate and weight decay, in few groups.

    ``SOLVER.DECAY_FILTER`` ``"timm"`` does not read ``WEIGHT_DECAY_NORM`` and
    ``WEIGHT_DECAY_BIAS``.
    """
    solver, uses_timm = cfg.SOLVER, decay_filter(cfg) == "timm"
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=None if uses_timm else solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=None if uses_timm else solver.WEIGHT_DECAY_BIAS,
    )
    if not uses_timm:
        return groups
    rates = {parameter: group["lr"] for group in groups for parameter in group["params"]}
    filtered = param_groups_weight_decay(
        model, solver.WEIGHT_DECAY, no_weight_decay_list=names_without_decay(model)
    )
    # In timm's order, so that LAMB's norm of all gradients is the same to the last bit.
    return reduce_param_groups(
        [
            {"params": [p], "lr": rates[p], "weight_decay": group["weight_decay"]}
            for group in filtered
            for p in group["params"]
        ]
    )


def names_without_decay(model: nn.Module) -> Set[str]:
    """Return the names of the parameters that timm models list in ``no_weight_decay()``."""
    names = set()
    for prefix, module in model.named_modules():
        if callable(getattr(module, "no_weight_decay", None)):
            names.update(f"{prefix}.{n}" if prefix else n for n in module.no_weight_decay())
    return names


def _clip_before_steps(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> None:
    """Clip the gradients before each step, exactly as ``maybe_add_gradient_clipping`` does.

    Detectron2 clips parameter by parameter, with about eight kernels for each of hundreds of
    parameters on a GPU; torch's ``foreach`` operators take a few kernels for all of them.
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS
    kind, limit, order = clip.CLIP_TYPE, float(clip.CLIP_VALUE), float(clip.NORM_TYPE)

    def clip_gradients(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        parameters = [
            p for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        if not parameters:
            return
        if kind == "value":
            torch.nn.utils.clip_grad_value_(parameters, limit)
        else:
            _clip_each_norm([p.grad for p in parameters], limit, order)

    optimizer.register_step_pre_hook(clip_gradients)


def _clip_each_norm(gradients: List[torch.Tensor], max_norm: float, order: float) -> None:
    """Scale each gradient, in place, to a norm of at most ``max_norm``."""
    norms = torch.stack(torch._foreach_norm(gradients, order))
    # clip_grad_norm_ takes the norm of the norms, here of a single one, which rounds.
    norms = torch.linalg.vector_norm(norms[:, None], order, dim=1)
    scales = (max_norm / (norms + 1e-6)).clamp(max=1.0)  # the constant of clip_grad_norm_
    torch._foreach_mul_(gradients, list(scales.unbind()))
