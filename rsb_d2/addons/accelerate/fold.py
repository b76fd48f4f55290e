"""Batch norm and ReLU folded into the convolutions before them."""

import copy
import logging
from collections import Counter
from typing import Callable

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.layers.batch_norm import NaiveSyncBatchNorm
from timm.layers import BatchNormAct2d, SyncBatchNormAct
from torch import fx, nn

from ...modeling.norm import FrozenBatchNormAct2d
from .conv import InferenceConv2d, InferenceLinear

logger = logging.getLogger(__name__)

_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, NaiveSyncBatchNorm, FrozenBatchNorm2d)
_NORMS_WITH_ACTIVATION = (BatchNormAct2d, SyncBatchNormAct, FrozenBatchNormAct2d)
_RELUS = (F.relu, F.relu_, torch.relu, torch.relu_)


def can_fold(norm: nn.Module | None) -> bool:
    """Whether a layer is a batch norm that uses running statistics in evaluation mode."""
    return type(norm) in (*_NORMS, *_NORMS_WITH_ACTIVATION) and norm.running_var is not None


def fold_norm(conv: nn.Conv2d, norm: nn.Module) -> nn.Conv2d:
    """A convolution that computes what a convolution and a batch norm do in evaluation mode.

    Args:
        conv (Conv2d): not changed.
        norm (nn.Module): for which :func:`can_fold` holds; an activation in it is left out.

    Returns:
        Conv2d
    """
    folded = copy.copy(conv)
    folded._parameters = dict(conv._parameters)
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    if conv.bias is not None:
        shift = shift + conv.bias.detach().double() * scale
    weight = conv.weight.detach().double() * scale[:, None, None, None]
    folded.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
    folded.bias = nn.Parameter(shift.to(conv.weight.dtype), requires_grad=False)
    return folded


def is_relu(activation: object) -> bool:
    """Whether a module or a function is a ReLU."""
    return type(activation) is nn.ReLU or activation in _RELUS


def replace_convs(root: nn.Module, dtype: torch.dtype) -> None:
    """Replace Detectron2's ``Conv2d``, with the norm and the activation in it, below a module.

    Args:
        root (nn.Module): changed in place; in evaluation mode.
        dtype (torch.dtype): of the new layers.
    """
    for parent in list(root.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is Conv2d and InferenceConv2d.takes(child):
                setattr(parent, name, _from_detectron2(child, dtype))


def _from_detectron2(conv: Conv2d, dtype: torch.dtype) -> InferenceConv2d:
    after = [a for a in (conv.norm, conv.activation) if a is not None]
    if after and type(after[0]) in _NORMS and can_fold(after[0]):
        conv = fold_norm(conv, after.pop(0))
    relu = len(after) > 0 and is_relu(after[-1])
    return InferenceConv2d(conv, dtype, relu, after[:-1] if relu else after)


def replace_rows(root: nn.Module, dtype: torch.dtype) -> None:
    """Replace convolutions and linear layers, with the batch norm and the ReLU behind them.

    Args:
        root (nn.Module): changed in place; in evaluation mode. In each ``nn.Sequential`` in it
            each layer's output goes to the next one alone.
        dtype (torch.dtype): of the new layers.
    """
    for module in list(root.modules()):
        if isinstance(module, nn.Sequential):
            _replace_row(module, dtype)


def _replace_row(row: nn.Sequential, dtype: torch.dtype) -> None:
    layers = list(row.named_children())
    for i, (name, layer) in enumerate(layers):
        following = [child for _, child in layers[i + 1 : i + 3]]
        names = [n for n, _ in layers[i + 1 : i + 3]]
        if type(layer) is nn.Conv2d and InferenceConv2d.takes(layer):
            if following and type(following[0]) in _NORMS and can_fold(following[0]):
                layer = fold_norm(layer, following.pop(0))
                setattr(row, names.pop(0), nn.Identity())
            new_type = InferenceConv2d
        elif type(layer) is nn.Linear:
            new_type = InferenceLinear
        else:
            continue
        relu = bool(following) and type(following[0]) is nn.ReLU
        if relu:
            setattr(row, names[0], nn.Identity())
        setattr(row, name, new_type(layer, dtype, relu))


class _Tracer(fx.Tracer):
    """Follows the calls between layers; what is in a layer does not count."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        is_layer = isinstance(module, (*_NORMS, nn.Conv2d)) or not list(module.children())
        return is_layer or super().is_leaf_module(module, name)


def fold_graph(root: nn.Module, dtype: torch.dtype) -> int:
    """Fold batch norms, wherever a convolution's output goes to one and nowhere else.

    The calls are followed with ``torch.fx``, so this holds for any architecture that it can trace;
    another one stays as it is.

    Args:
        root (nn.Module): changed in place; in evaluation mode.
        dtype (torch.dtype): of the convolutions with a norm in them.

    Returns:
        int: how many batch norms were folded.
    """
    try:
        graph = _Tracer().trace(root)
    except Exception as e:  # whatever the architecture does with a tensor that has no values
        logger.info(
            f"{type(root).__name__} keeps its batch norms, as torch.fx cannot trace it: {e}"
        )
        return 0
    modules = dict(root.named_modules(remove_duplicate=False))
    calls = Counter(id(modules[n.target]) for n in graph.nodes if n.op == "call_module")

    def called_once(node: object) -> nn.Module | None:
        if not (isinstance(node, fx.Node) and node.op == "call_module"):
            return None
        module = modules[node.target]
        return module if calls[id(module)] == 1 else None

    folded = 0
    for node in graph.nodes:
        norm = called_once(node)
        conv_node = node.args[0] if can_fold(norm) else None
        conv = called_once(conv_node)
        if type(conv) not in (nn.Conv2d, Conv2d) or len(conv_node.users) > 1:
            continue
        if not InferenceConv2d.takes(conv) or getattr(conv, "norm", None) is not None:
            continue
        activation = getattr(norm, "act", nn.Identity())
        relu = is_relu(activation)
        if type(activation) is nn.Identity:
            next_node = _only_user(node, called_once)
            if type(called_once(next_node)) is nn.ReLU:
                relu = True
                root.set_submodule(next_node.target, nn.Identity())
        root.set_submodule(conv_node.target, InferenceConv2d(fold_norm(conv, norm), dtype, relu))
        root.set_submodule(node.target, nn.Identity() if relu else activation)
        folded += 1
    return folded


def _only_user(node: fx.Node, called_once: Callable[[object], nn.Module | None]) -> fx.Node | None:
    """Where the output of a node goes to, past layers that do nothing; None if to several."""
    while len(node.users) == 1:
        node = next(iter(node.users))
        if type(called_once(node)) is not nn.Identity:
            return node
    return None
