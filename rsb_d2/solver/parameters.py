"""Which rate and which weight decay each parameter has."""

from typing import Any, Dict, List, Set

from detectron2.config import CfgNode
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import reduce_param_groups
from timm.optim import param_groups_weight_decay
from torch import nn

from ..errors import UserError

OPTIMIZERS = ("SGD", "AdamW", "LAMB")


def optimizer_name(cfg: CfgNode) -> str:
    """Return ``SOLVER.OPTIMIZER`` in the letters of :data:`OPTIMIZERS`; Mask2Former has ADAMW."""
    given = cfg.SOLVER.OPTIMIZER
    return next((name for name in OPTIMIZERS if name.lower() == str(given).lower()), given)


def decay_filter(cfg: CfgNode) -> str:
    """What ``SOLVER.DECAY_FILTER`` stands for: ``"detectron2"`` or ``"timm"``."""
    if cfg.SOLVER.DECAY_FILTER != "auto":
        return cfg.SOLVER.DECAY_FILTER
    return "timm" if optimizer_name(cfg) == "LAMB" else "detectron2"


def check_decay_filter(cfg: CfgNode) -> None:
    """Raise a :class:`UserError` if another key asks for a decay that the filter leaves out."""
    solver = cfg.SOLVER
    for key in ("WEIGHT_DECAY_NORM", "WEIGHT_DECAY_BIAS"):
        if decay_filter(cfg) == "timm" and solver[key]:
            raise UserError(
                f"SOLVER.{key} is {solver[key]}, but SOLVER.DECAY_FILTER {solver.DECAY_FILTER} "
                f"with {solver.OPTIMIZER} decays no norms and no biases; write SOLVER.{key} 0.0, "
                "or SOLVER.DECAY_FILTER detectron2"
            )


def parameter_groups(cfg: CfgNode, model: nn.Module) -> List[Dict[str, Any]]:
    """Sort the parameters that train by rate and weight decay.

    Args:
        cfg (CfgNode): its ``SOLVER.BASE_LR``, ``BIAS_LR_FACTOR``, ``DECAY_FILTER`` and
            ``WEIGHT_DECAY``, with ``"detectron2"`` also ``WEIGHT_DECAY_NORM`` and ``_BIAS``.
        model (nn.Module): frozen parameters are left out.

    Returns:
        list[dict[str, Any]]: ``params``, ``lr`` and ``weight_decay`` of each group; as few groups
        as there are different ones.
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
    # In timm's order, by which the norm of the whole gradient is the same to the last bit.
    return reduce_param_groups(
        [
            {"params": [p], "lr": rates[p], "weight_decay": group["weight_decay"]}
            for group in filtered
            for p in group["params"]
        ]
    )


def names_without_decay(model: nn.Module) -> Set[str]:
    """What timm's models name in ``no_weight_decay()``, such as position embeddings.

    Args:
        model (nn.Module): a timm model, or one that has timm models within.

    Returns:
        set[str]: names of parameters of ``model``.
    """
    names = set()
    for prefix, module in model.named_modules():
        if callable(getattr(module, "no_weight_decay", None)):
            names.update(f"{prefix}.{n}" if prefix else n for n in module.no_weight_decay())
    return names
