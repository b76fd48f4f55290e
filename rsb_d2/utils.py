"""Helpers that several folders of the core share."""

from typing import Any, Dict, Sequence, Tuple

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.parallel import DataParallel, DistributedDataParallel


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside a wrapper for data parallelism, or the model itself."""
    return model.module if isinstance(model, (DistributedDataParallel, DataParallel)) else model


def run_on_meta(
    net: nn.Module, image_shape: Sequence[int], with_graph: bool = False
) -> Tuple[Any, Dict[str, torch.Tensor]]:
    """Run a network in evaluation mode on the meta device, which costs no arithmetic.

    Args:
        net (nn.Module): takes images; it keeps its weights and mode.
        image_shape (sequence of int): (N, C, H, W).
        with_graph (bool): whether autograd records its graph, as if all parameters trained.

    Returns:
        Any, dict[str, Tensor]: the result of the network, and the parameters that it was run with.
    """
    modes = {module: module.training for module in net.modules()}
    with torch.inference_mode(False), torch.set_grad_enabled(with_graph):
        buffers = {n: torch.empty_like(b, device="meta") for n, b in net.named_buffers()}
        parameters = {
            n: torch.empty_like(p, device="meta", requires_grad=with_graph)
            for n, p in net.named_parameters()
        }
        images = torch.empty(*image_shape, device="meta")
        try:
            return functional_call(net.eval(), {**parameters, **buffers}, (images,)), parameters
        finally:
            for module, mode in modes.items():
                module.training = mode


def has_hooks(module: nn.Module) -> bool:
    """Whether forward hooks are registered on a module, which a replacement would not call."""
    return bool(module._forward_hooks or module._forward_pre_hooks)
