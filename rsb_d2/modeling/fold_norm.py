"""Batch norm with fixed statistics as part of the convolution before it, while it trains."""

from collections import Counter
from typing import Any, Dict, List, Tuple

import torch
from torch import nn
from torch.func import functional_call


def fold_norms_in_training(net: nn.Module, in_channels: int = 3) -> int:
    """Let the convolutions of a network compute the batch norms behind them while they train.

    With fixed statistics (``MODEL.TIMM.NORM_EVAL``) a batch norm is a factor and an offset of each
    channel. Multiplied into the weights of the convolution before it, in each forward pass, they
    cost next to nothing, and autograd finds the gradients of all: those of the batch norm's
    weight come from the gradient of the convolution's weights. So nothing of the batch norm's size
    is computed or kept for the backward pass, which halves the memory of a ResNet's features.

    Nothing changes without gradients, in evaluation mode, for statistics that are not fixed or for
    frozen weights; names and values of the weights are what they were. Only plain ``nn.Conv2d``
    and ``nn.BatchNorm2d`` are folded, and only where nothing else takes what the convolution
    returns.

    Args:
        net (nn.Module): takes images (N, in_channels, H, W), and returns a list of features or
            one; its layers are changed in place.
        in_channels (int): of its input.

    Returns:
        int: how many batch norms are folded.
    """
    pairs = _find_pairs(net, in_channels)
    for conv, norm in pairs:
        conv.__class__, norm.__class__ = FoldingConv2d, FoldedBatchNorm2d
        # In tuples, so that they are not registered as children.
        conv.norm_behind, norm.conv_before = (norm,), (conv,)
    return len(pairs)


def unfold_norms(net: nn.Module) -> None:
    """Undo :func:`fold_norms_in_training`, for what knows plain layers only.

    Args:
        net (nn.Module): its layers are changed in place; weights stay what they are.
    """
    for module in net.modules():
        if isinstance(module, FoldingConv2d):
            module.__class__ = nn.Conv2d
            del module.norm_behind
        elif isinstance(module, FoldedBatchNorm2d):
            module.__class__ = nn.BatchNorm2d
            del module.conv_before
            module.__dict__.pop("_known", None)


def _is_folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> bool:
    return (
        conv.training
        and not norm.training
        and norm.weight.requires_grad
        and torch.is_grad_enabled()
    )


class FoldingConv2d(nn.Conv2d):
    """A convolution and, in training, the batch norm behind it.

    :func:`fold_norms_in_training` makes it of an ``nn.Conv2d``.
    """

    norm_behind: Tuple[nn.BatchNorm2d]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (norm,) = self.norm_behind
        if not _is_folded(self, norm):
            return super().forward(x)
        factor, offset = norm.fixed_statistics()
        scale = norm.weight * factor
        if self.bias is not None:
            offset = offset + self.bias
        weight = self.weight * scale[:, None, None, None]
        return self._conv_forward(x, weight, torch.addcmul(norm.bias, offset, scale))


class FoldedBatchNorm2d(nn.BatchNorm2d):
    """A batch norm that leaves its work to the convolution before it in training."""

    conv_before: Tuple[nn.Conv2d]

    def fixed_statistics(self) -> Tuple[torch.Tensor, torch.Tensor]:
        """``1 / sqrt(running_var + eps)`` and ``-running_mean``, (C,) each.

        They are kept until the statistics are other ones, so that a step does not launch the same
        little kernels for each layer again.
        """
        mean, var = self.running_mean, self.running_var
        if torch.compiler.is_compiling() or mean.is_inference() or var.is_inference():
            return (var + self.eps).rsqrt(), -mean
        key = (id(mean), mean._version, id(var), var._version, var.device, var.dtype, self.eps)
        if self.__dict__.get("_known", (None,))[0] != key:
            with torch.no_grad():
                # With the tensors themselves, so that no others take their ids.
                self._known = key, (mean, var), ((var + self.eps).rsqrt(), -mean)
        return self._known[2]

    def __getstate__(self) -> Dict[str, Any]:
        return {k: v for k, v in super().__getstate__().items() if k != "_known"}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (conv,) = self.conv_before
        return x if _is_folded(conv, self) else super().forward(x)


def _find_pairs(net: nn.Module, in_channels: int) -> List[Tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Convolutions whose output goes into a batch norm and nowhere else.

    They are found by a forward pass on the meta device, which costs no arithmetic: modules by
    hooks, and that there is no other use by autograd's graph.
    """
    outputs, pairs, handles = {}, [], []

    def after_conv(conv, inputs, output):
        # The output is kept, so that no other tensor takes its id.
        outputs[id(output)] = conv, output

    def before_norm(norm, inputs):
        conv, output = outputs.get(id(inputs[0]), (None, None))
        if conv is not None:
            pairs.append((conv, norm, output.grad_fn))

    for module in net.modules():
        if type(module) is nn.Conv2d:
            handles.append(module.register_forward_hook(after_conv))
        elif type(module) is nn.BatchNorm2d and module.affine and module.track_running_stats:
            handles.append(module.register_forward_pre_hook(before_norm))
    modes = {module: module.training for module in net.modules()}
    try:
        net.eval()
        weights = {n: p.detach().to("meta").requires_grad_() for n, p in net.named_parameters()}
        buffers = {n: b.to("meta") for n, b in net.named_buffers()}
        images = torch.empty(1, in_channels, 64, 64, device="meta")
        with torch.enable_grad():
            features = functional_call(net, {**weights, **buffers}, (images,))
        features = [features] if isinstance(features, torch.Tensor) else features
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    uses = _count_uses([f.grad_fn for f in features])
    called = Counter(module for conv, norm, _ in pairs for module in (conv, norm))
    return [
        (conv, norm)
        for conv, norm, node in pairs
        if uses[node] == 1 and called[conv] == called[norm] == 1
    ]


def _count_uses(nodes: list) -> Counter:
    """How often the output of each node of autograd's graph is used, that of the last ones too."""
    uses, todo = Counter(nodes), list(dict.fromkeys(nodes))
    seen = set(todo)
    while todo:
        for node, _ in todo.pop().next_functions:
            if node is not None:
                uses[node] += 1
                if node not in seen:
                    seen.add(node)
                    todo.append(node)
    return uses
