"""Gradient clipping as Detectron2's, of all parameters at once."""

from typing import Iterable, List

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import _generate_optimizer_class_with_gradient_clipping

_EPS = 1e-6  # of torch.nn.utils.clip_grad_norm_


def add_gradient_clipping(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer clip the gradients before each step, if the config says so.

    The clipped gradients are those of Detectron2's ``maybe_add_gradient_clipping``, bit for bit. It
    clips one parameter after the other, each by itself; on a GPU that starts some eight kernels for
    each of hundreds of parameters, where torch's ``foreach`` operators start a few for all of them.

    Args:
        cfg (CfgNode): its ``SOLVER.CLIP_GRADIENTS``: ``CLIP_TYPE`` is ``"value"``, each number is
            clipped to +- ``CLIP_VALUE``, or ``"norm"``, the gradient of each parameter is scaled to
            a norm of at most ``CLIP_VALUE``, of the order ``NORM_TYPE``.
        optimizer (torch.optim.Optimizer): its class becomes one that clips, as in Detectron2.
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not clip.ENABLED:
        return
    value, order = float(clip.CLIP_VALUE), float(clip.NORM_TYPE)

    def clip_values(parameters: Iterable[torch.Tensor]) -> None:
        with_gradients = [p for p in parameters if p.grad is not None]
        if with_gradients:  # torch fails where there are none
            torch.nn.utils.clip_grad_value_(with_gradients, value)

    def clip_norms(parameters: Iterable[torch.Tensor]) -> None:
        clip_each_norm([p.grad for p in parameters if p.grad is not None], value, order)

    clipper = {"value": clip_values, "norm": clip_norms}[clip.CLIP_TYPE]
    optimizer.__class__ = _generate_optimizer_class_with_gradient_clipping(
        type(optimizer), global_clipper=clipper
    )


def clip_each_norm(gradients: List[torch.Tensor], max_norm: float, order: float = 2.0) -> None:
    """Scale each gradient whose norm is above a limit to that, in place.

    Args:
        gradients (list[Tensor]): on one device.
        max_norm (float): of each.
        order (float): of the norm; ``inf`` for the largest magnitude.
    """
    if not gradients:
        return
    norms = torch.stack(torch._foreach_norm(gradients, order))
    # What clip_grad_norm_ does with the norms of several parameters, of one each: it rounds.
    norms = torch.linalg.vector_norm(norms[:, None], order, dim=1)
    scales = (max_norm / (norms + _EPS)).clamp(max=1.0)
    torch._foreach_mul_(gradients, list(scales.unbind()))
