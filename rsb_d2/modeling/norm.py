"""Batch norm: which layers train, and folding fixed statistics into convolutions."""

from collections import Counter
from typing import Any, Dict, List, NamedTuple, Tuple

import torch
from detectron2.layers import FrozenBatchNorm2d
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import nn

from ..utils import has_hooks, run_on_meta

NORM_POLICIES = ("FrozenBN", "BN", "SyncBN")

# nn.SyncBatchNorm is not a subclass of nn.BatchNorm2d; timm's BatchNormAct2d and SyncBatchNormAct
# are subclasses of one of the two.
BATCH_NORM_TYPES = (nn.BatchNorm2d, nn.SyncBatchNorm)


# ---- the norm policy ----


class FrozenBatchNormAct2d(FrozenBatchNorm2d):
    """Detectron2's ``FrozenBatchNorm2d`` with the activation that timm's ``BatchNormAct2d`` fuses.

    Detectron2's own conversion replaces the complete layer and so loses the activation.
    """

    def __init__(self, norm: BatchNormAct2d):
        super().__init__(norm.num_features, norm.eps)
        self.drop = norm.drop
        self.act = norm.act

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


def _frozen_copy(norm: nn.Module) -> FrozenBatchNorm2d:
    if isinstance(norm, BatchNormAct2d):
        frozen = FrozenBatchNormAct2d(norm)
    else:
        frozen = FrozenBatchNorm2d(norm.num_features, norm.eps)
    frozen.to(norm.running_mean.device)
    if norm.affine:
        frozen.weight.copy_(norm.weight.detach())
        frozen.bias.copy_(norm.bias.detach())
    frozen.running_mean.copy_(norm.running_mean)
    frozen.running_var.copy_(norm.running_var)
    return frozen


def apply_norm_policy(module: nn.Module, policy: str) -> None:
    """Replace the batch-norm layers below ``module``, in place, according to a policy.

    Args:
        module (nn.Module): a network; it is not itself a batch-norm layer.
        policy (str): ``"FrozenBN"`` replaces them by Detectron2's ``FrozenBatchNorm2d`` (a fused
            activation is kept), ``"SyncBN"`` by the synchronized layers of torch and timm,
            ``"BN"`` keeps them. Other kinds of norm layers, such as layer norm, stay.

    Raises:
        ValueError: for any other policy.
    """
    if policy not in NORM_POLICIES:
        raise ValueError(f"norm policy {policy!r} is not one of {', '.join(NORM_POLICIES)}")
    if policy == "SyncBN":
        convert_sync_batchnorm(module)
    elif policy == "FrozenBN":
        for parent in list(module.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, BATCH_NORM_TYPES):
                    setattr(parent, name, _frozen_copy(child))


# ---- folding in training ----


def fold_norms_in_training(net: nn.Module, in_channels: int = 3) -> int:
    """Let the convolutions of a network compute the batch norms after them during training.

    With fixed statistics (``MODEL.TIMM.NORM_EVAL``) a batch norm is a factor and an offset per
    channel. Multiplying them into the weights of the convolution, in each forward pass, costs next
    to nothing, and autograd computes all gradients: that of the batch norm's weight follows from
    the gradient of the convolution's weight. So nothing of the size of a feature map is computed
    or kept for the batch norm, which halves the memory of a ResNet's features.

    Nothing changes without gradients, in evaluation mode, for statistics that are not fixed or for
    frozen weights; the names and values of the weights stay. Only plain ``nn.Conv2d`` and
    ``nn.BatchNorm2d`` are folded, and only if nothing else reads the output of the convolution.

    Args:
        net (nn.Module): takes images (N, in_channels, H, W), and returns a feature or a list of
            features; its layers are replaced in place.
        in_channels (int): number of channels of the input.

    Returns:
        int: the number of folded batch norms.
    """
    found = find_norms(net, in_channels, (nn.Conv2d,), (nn.BatchNorm2d,))
    found = [f for f in found if f.norm.affine and f.norm.track_running_stats]
    for conv, norm, _ in found:
        folding_conv, folded_norm = FoldingConv2d(conv), FoldedBatchNorm2d(norm)
        # In tuples, so that they are not registered as children.
        folding_conv.norm_after, folded_norm.conv_before = (folded_norm,), (folding_conv,)
        replace_module(net, conv, folding_conv)
        replace_module(net, norm, folded_norm)
    for stage in net.children():
        convs = [m for m in stage.modules() if type(m) is FoldingConv2d and m.bias is None]
        if len(convs) > 1:
            folding = _StageFolding(convs)
            stage.register_forward_pre_hook(folding.prepare)
            stage.register_forward_hook(folding.forget, always_call=True)
    return len(found)


def _is_folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> bool:
    return (
        conv.training
        and not norm.training
        and norm.weight.requires_grad
        and torch.is_grad_enabled()
    )


class FoldingConv2d(nn.Conv2d):
    """A convolution that, in training, computes the batch norm after it.

    It shares the parameters of ``conv``.
    """

    norm_after: Tuple[nn.BatchNorm2d]
    prepared: Tuple[torch.Tensor, torch.Tensor] | None = None  # by _StageFolding

    def __init__(self, conv: nn.Conv2d):
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
            device="meta",
        )
        self.weight, self.bias, self.training = conv.weight, conv.bias, conv.training

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (norm,) = self.norm_after
        if not _is_folded(self, norm):
            return super().forward(x)
        if self.prepared is not None:
            scale, bias = self.prepared
            weight = _ScaledWeight.apply(self.weight, scale[:, None, None, None], bias.dtype)
            return self._conv_forward(x, weight, bias)
        factor, offset = norm.fixed_statistics()
        if self.bias is not None:
            offset = offset + self.bias
        scale, bias = _scale_and_bias(norm.weight, norm.bias, factor, offset)
        return self._conv_forward(x, self.weight * scale[:, None, None, None], bias)


class _ScaledWeight(torch.autograd.Function):
    """A product that is rounded to another type in the same kernel, as are its gradients."""

    @staticmethod
    def forward(ctx, weight, scale, dtype):
        ctx.save_for_backward(weight, scale)
        return torch.mul(weight, scale, out=torch.empty_like(weight, dtype=dtype))

    @staticmethod
    def backward(ctx, grad):
        weight, scale = ctx.saved_tensors
        return grad * scale, (grad * weight).sum((1, 2, 3), keepdim=True), None


def _scale_and_bias(
    weight: torch.Tensor, bias: torch.Tensor, factor: torch.Tensor, offset: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor]:
    scale = weight * factor
    return scale, torch.addcmul(bias, offset, scale)


class _StageFolding:
    """Forward hooks of a stage, which compute the small tensors of all of its norms at once.

    Layer by layer, a GPU starts two kernels per norm in the forward and four in the backward pass,
    for a few hundred numbers each; for the stage it is a dozen. One stage at a time, so that
    ``DistributedDataParallel`` can send the gradients of a stage during the backward pass of the
    one before.

    Args:
        convs (list[FoldingConv2d]): of the stage, without biases.
    """

    def __init__(self, convs: List[FoldingConv2d]):
        self._convs = convs

    def prepare(self, module: nn.Module, inputs: Any) -> None:
        convs = [conv for conv in self._convs if _is_folded(conv, *conv.norm_after)]
        if not convs or torch.compiler.is_compiling():
            return
        norms = [norm for conv in convs for norm in conv.norm_after]
        tensors = [(norm.weight, norm.bias, *norm.fixed_statistics()) for norm in norms]
        scale, bias = _scale_and_bias(*map(torch.cat, zip(*tensors)))
        kind = bias.device.type
        if bias.dtype is torch.float32 and torch.is_autocast_enabled(kind):
            bias = bias.to(torch.get_autocast_dtype(kind))  # as each convolution would
        sizes = [norm.num_features for norm in norms]
        for conv, *prepared in zip(convs, scale.split(sizes), bias.split(sizes)):
            conv.prepared = tuple(prepared)

    def forget(self, module: nn.Module, inputs: Any, output: Any) -> None:
        for conv in self._convs:
            conv.prepared = None


class FoldedBatchNorm2d(nn.BatchNorm2d):
    """A batch norm that the convolution before it computes in training.

    It shares the parameters and buffers of ``norm``.
    """

    conv_before: Tuple[nn.Conv2d]

    def __init__(self, norm: nn.BatchNorm2d):
        super().__init__(norm.num_features, norm.eps, norm.momentum, device="meta")
        self.weight, self.bias, self.training = norm.weight, norm.bias, norm.training
        for name, buffer in norm.named_buffers():
            setattr(self, name, buffer)

    def fixed_statistics(self) -> Tuple[torch.Tensor, torch.Tensor]:
        """``1 / sqrt(running_var + eps)`` and ``-running_mean``, (C,) each.

        They are cached until the statistics change, which saves two small kernels per layer and
        step. A CUDA graph computes them in each replay.
        """
        mean, var = self.running_mean, self.running_var
        is_traced = torch.compiler.is_compiling() or (
            torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
        )
        if is_traced or mean.is_inference() or var.is_inference():
            return (var + self.eps).rsqrt(), -mean
        key = (id(mean), mean._version, id(var), var._version, var.device, var.dtype, self.eps)
        if self.__dict__.get("_known", (None,))[0] != key:
            with torch.no_grad():
                # With the tensors themselves, so that no others get their ids.
                self._known = key, (mean, var), ((var + self.eps).rsqrt(), -mean)
        return self._known[2]

    def __getstate__(self) -> Dict[str, Any]:
        return {k: v for k, v in super().__getstate__().items() if k != "_known"}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (conv,) = self.conv_before
        return x if _is_folded(conv, self) else super().forward(x)


# ---- finding layers to fold ----


class ConvAndNorm(NamedTuple):
    """Layers that are called one after the other, the output of each being read by the next only.

    Args:
        conv (nn.Module): the convolution.
        norm (nn.Module): the norm layer after it.
        relu (ReLU or None): the ReLU after that, if one follows.
    """

    conv: nn.Module
    norm: nn.Module
    relu: nn.ReLU | None


def find_norms(
    net: nn.Module,
    in_channels: int,
    conv_types: Tuple[type, ...],
    norm_types: Tuple[type, ...],
) -> List[ConvAndNorm]:
    """Find the convolutions whose output is read by a norm layer and nothing else.

    A forward pass on the meta device, without arithmetic, finds them: hooks report the modules,
    and autograd's graph how often each output is read.

    Args:
        net (nn.Module): takes images (N, in_channels, H, W), and returns a feature or a list of
            features.
        in_channels (int): number of channels of the input.
        conv_types, norm_types (tuple[type]): the classes to find. Subclasses are not found, nor
            are layers with forward hooks, so that any found layer can be replaced.
    """
    makers: Dict[Any, nn.Module] = {}  # the module that made each output, by its node in the graph
    edges: List[Tuple[Any, nn.Module]] = []  # a node, and the module that reads it
    calls: Counter = Counter()

    def after(module, inputs, output):
        calls[module] += 1
        makers[output.grad_fn] = module

    def before(module, inputs):
        if inputs[0].grad_fn in makers:
            edges.append((inputs[0].grad_fn, module))

    layers = (*conv_types, *norm_types, nn.ReLU)
    handles = []
    for module in net.modules():
        if type(module) in layers and not has_hooks(module):
            handles.append(module.register_forward_pre_hook(before))
            handles.append(module.register_forward_hook(after))
    try:
        features, _ = run_on_meta(net, (1, in_channels, 64, 64), with_graph=True)
    finally:
        for handle in handles:
            handle.remove()
    features = [features] if isinstance(features, torch.Tensor) else features

    uses = _count_uses([f.grad_fn for f in features])
    next_of = {
        makers[node]: reader
        for node, reader in edges
        if uses[node] == 1 and calls[makers[node]] == calls[reader] == 1
    }
    found = []
    for conv, norm in next_of.items():
        if type(conv) in conv_types and type(norm) in norm_types:
            relu = next_of.get(norm)
            found.append(ConvAndNorm(conv, norm, relu if type(relu) is nn.ReLU else None))
    return found


def replace_module(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace a module below ``root``, in place, under all of its names."""
    names = [n for n, m in root.named_modules(remove_duplicate=False) if m is old]
    for name in names:
        root.set_submodule(name, new)


def _count_uses(nodes: list) -> Counter:
    """How often each node of autograd's graph is read, including ``nodes``, the last ones."""
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
