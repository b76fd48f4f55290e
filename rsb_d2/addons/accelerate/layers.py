"""Layers for inference: convolutions with the norm, ReLU and addition after them in one kernel."""

import copy
import logging
from typing import Callable, Dict, List, Sequence, Tuple

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.layers.batch_norm import NaiveSyncBatchNorm
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone import resnet as d2_resnet
from detectron2.modeling.roi_heads.box_head import FastRCNNConvFCHead
from timm.layers import BatchNormAct2d, SyncBatchNormAct
from timm.models import resnet as timm_resnet
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops import Permute

from ...modeling.norm import (
    FoldedBatchNorm2d,
    FoldingConv2d,
    FrozenBatchNormAct2d,
    find_norms,
    replace_module,
)

logger = logging.getLogger(__name__)

_NORMS = (
    *(nn.BatchNorm2d, nn.SyncBatchNorm, NaiveSyncBatchNorm, FrozenBatchNorm2d),
    FoldedBatchNorm2d,
)
_NORMS_WITH_ACTIVATION = (BatchNormAct2d, SyncBatchNormAct, FrozenBatchNormAct2d)
_RELUS = (F.relu, F.relu_, torch.relu, torch.relu_)


# ---- convolutions and linear layers ----


def has_fused_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch has fused kernels for a device and dtype: of oneDNN, or on a GPU of cuDNN.

    ``torch.compile`` calls those of oneDNN on the CPU. None are faster for float16. Those of cuDNN
    compute float32 in TF32, so they are used for lower precision only.
    """
    if device.type == "cuda":
        return dtype != torch.float32 and torch.backends.cudnn.is_available()
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    names = ("_convolution_pointwise", "_convolution_pointwise_", "_linear_pointwise")
    if not all(hasattr(torch.ops.mkldnn, name) for name in names):
        return False
    return dtype == torch.float32 or (
        dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


class _InferenceLayer(nn.Module):
    """A layer with constant weights, in one dtype.

    Args:
        weight (Tensor): copied only if it must be cast.
        bias (Tensor or None): as the weight.
        dtype (torch.dtype): to compute in; the input is cast to it.

    Attributes:
        output_dtype (torch.dtype): of the output; ``dtype`` by default.
        is_fused (bool): whether fused kernels are called; see :func:`has_fused_kernels`.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype):
        super().__init__()
        self.weight = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
        self.bias = None
        if bias is not None:
            self.bias = nn.Parameter(bias.detach().to(dtype), requires_grad=False)
        self.output_dtype = dtype
        self.is_fused = False


class InferenceConv2d(_InferenceLayer):
    """``Conv2d`` in channels-last, with a ReLU, or an addition and a ReLU, in the same kernel.

    The input is converted to channels-last if needed, and so is the output.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        dtype: torch.dtype = torch.float32,
        relu: bool = False,
        after: Sequence[Callable[[torch.Tensor], torch.Tensor]] = (),
    ):
        """
        Args:
            conv (Conv2d): one for which :meth:`takes` holds.
            dtype (torch.dtype): to compute in.
            relu (bool): whether a ReLU ends it.
            after (sequence of callable): called before the ReLU: a norm that cannot be folded,
                another activation.
        """
        weight = conv.weight.detach().contiguous(memory_format=torch.channels_last)
        super().__init__(weight, conv.bias, dtype)
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation
        self.groups = conv.groups
        self.relu = relu
        self.after = nn.ModuleList(a for a in after if isinstance(a, nn.Module))
        self._functions_after = [a for a in after if not isinstance(a, nn.Module)]

    @staticmethod
    def takes(conv: nn.Module) -> bool:
        """Whether this class can replace a layer."""
        return (
            isinstance(conv, nn.Conv2d)
            and conv.padding_mode == "zeros"
            and not isinstance(conv.padding, str)
        )

    @property
    def has_more(self) -> bool:
        """bool: whether anything follows the convolution besides a ReLU."""
        return bool(len(self.after) or self._functions_after)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x (Tensor): (N, C, H, W).

        Returns:
            Tensor: (N, C', H', W') in channels-last, of ``output_dtype``.
        """
        relu = self.relu and not self.has_more
        y = self._fused(x, relu)
        if y is None:
            more = self.stride, self.padding, self.dilation, self.groups
            y = F.conv2d(self._to_mine(x), self.weight, self.bias, *more)
            y = y.relu_() if relu else y
        for after in (*self.after, *self._functions_after):
            y = after(y)
        if self.relu and self.has_more:
            y = F.relu(y)
        if self.has_more:  # on a GPU torch's GroupNorm leaves another layout
            y = y.contiguous(memory_format=torch.channels_last)
        return y.to(self.output_dtype)

    def add(
        self, x: torch.Tensor, other: torch.Tensor, relu: bool = False, inplace: bool = False
    ) -> torch.Tensor:
        """``forward(x) + other``, optionally with a ReLU on the sum.

        Args:
            x (Tensor): (N, C, H, W).
            other (Tensor): of the output's shape.
            relu (bool): of the sum.
            inplace (bool): whether ``other`` may be overwritten.

        Returns:
            Tensor: of the output's shape.
        """
        y = None if self.relu or self.has_more else self._fused(x, relu, other, inplace)
        if y is None:
            y = self.forward(x).add_(other)
            y = y.relu_() if relu else y
        return y

    def _fused(
        self,
        x: torch.Tensor,
        relu: bool,
        other: torch.Tensor | None = None,
        inplace: bool = False,
    ) -> torch.Tensor | None:
        """``conv(x) + other``, optionally with a ReLU, by one kernel; None if there is none."""
        if not self.is_fused or not x.numel() or (x.is_cuda and not relu):
            return None
        arguments = self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
        x = self._to_mine(x)
        other = None if other is None else self._to_mine(other)
        if x.is_cuda:
            return self._cudnn(x, other)
        if other is None:
            end = "relu" if relu else "none", [], ""
            return torch.ops.mkldnn._convolution_pointwise(x, *arguments, *end)
        end = *arguments, "add", 1.0, "relu" if relu else None, [], None
        if inplace:
            return torch.ops.mkldnn._convolution_pointwise_.binary(other, x, *end)
        return torch.ops.mkldnn._convolution_pointwise.binary(x, other, *end)

    def _cudnn(self, x: torch.Tensor, other: torch.Tensor | None) -> torch.Tensor | None:
        more = self.bias, self.stride, self.padding, self.dilation, self.groups
        try:
            if other is None:
                return torch.cudnn_convolution_relu(x, self.weight, *more)
            return torch.cudnn_convolution_add_relu(x, self.weight, other, 1.0, *more)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as e:  # before anything is computed
            logger.info(f"cuDNN has no fused kernel for {tuple(self.weight.shape)}: {e}")
            self.is_fused = False
        return None

    def _to_mine(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.weight.dtype).contiguous(memory_format=torch.channels_last)


class InferenceLinear(_InferenceLayer):
    """``Linear``, with a ReLU in the same kernel."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype = torch.float32, relu: bool = False):
        """
        Args:
            linear (Linear): to replace.
            dtype (torch.dtype): to compute in.
            relu (bool): whether a ReLU follows.
        """
        super().__init__(linear.weight, linear.bias, dtype)
        self.relu = relu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x (Tensor): (N, C).

        Returns:
            Tensor: (N, C'), of ``output_dtype``.
        """
        x = x.to(self.weight.dtype)
        if self.is_fused and not x.is_cuda and x.numel():
            y = torch.ops.mkldnn._linear_pointwise(
                x.contiguous(), self.weight, self.bias, "relu" if self.relu else "none", [], ""
            )
        else:
            y = F.linear(x, self.weight, self.bias)
            y = y.relu_() if self.relu else y
        return y.to(self.output_dtype)


def fuse_all(root: nn.Module) -> None:
    """Let all layers of this module's classes below another, in place, call fused kernels."""
    for module in root.modules():
        if isinstance(module, _InferenceLayer):
            module.is_fused = True


# ---- folding ----


def can_fold(norm: nn.Module | None) -> bool:
    """Whether a layer is a batch norm that uses running statistics in evaluation mode."""
    return type(norm) in (*_NORMS, *_NORMS_WITH_ACTIVATION) and norm.running_var is not None


def fold_norm(conv: nn.Conv2d, norm: nn.Module) -> nn.Conv2d:
    """Make a convolution that equals a convolution and a batch norm in evaluation mode.

    Args:
        conv (Conv2d): not changed.
        norm (nn.Module): one for which :func:`can_fold` holds; its activation is left out.

    Returns:
        Conv2d
    """
    tensors = (conv.weight, conv.bias, norm.running_mean, norm.running_var)
    tensors = [None if t is None else t.detach().double() for t in tensors]
    affine = [None if t is None else t.detach().double() for t in (norm.weight, norm.bias)]
    weight, bias = fuse_conv_bn_weights(*tensors, norm.eps, *affine)
    folded = copy.deepcopy(conv)
    folded.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
    folded.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)
    return folded


def is_relu(activation: object) -> bool:
    """Whether a module or a function is a ReLU."""
    return type(activation) is nn.ReLU or activation in _RELUS


def replace_convs(root: nn.Module, dtype: torch.dtype) -> None:
    """Replace Detectron2's ``Conv2d``, with its norm and activation, below a module.

    Args:
        root (nn.Module): changed in place; in evaluation mode.
        dtype (torch.dtype): of the new layers.
    """
    for parent in list(root.modules()):
        for name, conv in list(parent.named_children()):
            if type(conv) is Conv2d and InferenceConv2d.takes(conv):
                after = [a for a in (conv.norm, conv.activation) if a is not None]
                if after and type(after[0]) in _NORMS and can_fold(after[0]):
                    conv = fold_norm(conv, after.pop(0))
                relu = bool(after) and is_relu(after[-1])
                setattr(
                    parent, name, InferenceConv2d(conv, dtype, relu, after[: len(after) - relu])
                )


def replace_rows(root: nn.Module, dtype: torch.dtype) -> None:
    """Replace convolutions and linear layers, with the batch norm and the ReLU after them.

    Args:
        root (nn.Module): changed in place; in evaluation mode. In each ``nn.Sequential`` in it
            each layer's output goes to the next one only.
        dtype (torch.dtype): of the new layers.
    """
    for row in [module for module in root.modules() if isinstance(module, nn.Sequential)]:
        layers = list(row.named_children())
        for i, (name, layer) in enumerate(layers):
            after = layers[i + 1 : i + 3]
            is_conv = type(layer) is nn.Conv2d and InferenceConv2d.takes(layer)
            if not is_conv and type(layer) is not nn.Linear:
                continue
            if is_conv and after and type(after[0][1]) in _NORMS and can_fold(after[0][1]):
                layer = fold_norm(layer, after[0][1])
                setattr(row, after.pop(0)[0], nn.Identity())
            relu = bool(after) and type(after[0][1]) is nn.ReLU
            if relu:
                setattr(row, after[0][0], nn.Identity())
            setattr(
                row, name, (InferenceConv2d if is_conv else InferenceLinear)(layer, dtype, relu)
            )


def fold_net(root: nn.Module, in_channels: int, dtype: torch.dtype) -> int:
    """Fold batch norms wherever the output of a convolution is read by one and nothing else.

    Args:
        root (nn.Module): as of :func:`rsb_d2.modeling.norm.find_norms`; changed in place. If it
            does not run on the meta device, it keeps its batch norms.
        in_channels (int): number of channels of its input.
        dtype (torch.dtype): of the convolutions that replace them.

    Returns:
        int: the number of folded batch norms.
    """
    convs = (nn.Conv2d, Conv2d, FoldingConv2d)
    try:
        found = find_norms(root, in_channels, convs, (*_NORMS, *_NORMS_WITH_ACTIVATION))
    except Exception as e:  # architectures fail in many ways on tensors without values
        logger.info(f"{type(root).__name__} keeps its batch norms, as it cannot be traced: {e}")
        return 0
    folded = 0
    for conv, norm, relu in found:
        if not (can_fold(norm) and InferenceConv2d.takes(conv)):
            continue
        activation = getattr(norm, "act", nn.Identity())
        has_relu = is_relu(activation)
        if type(activation) is nn.Identity and relu is not None:
            has_relu = True
            replace_module(root, relu, nn.Identity())
        replace_module(root, conv, InferenceConv2d(fold_norm(conv, norm), dtype, has_relu))
        replace_module(root, norm, nn.Identity() if has_relu else activation)
        folded += 1
    return folded


# ---- residual blocks and FPN ----


class InferenceResidualBlock(nn.Module):
    """The residual block of a ResNet: the sum and its ReLU belong to the last convolution."""

    # Whether the input may be overwritten, as only this block reads it.
    owns_input = False

    def __init__(self, convs: List[InferenceConv2d], shortcut: nn.Module | None):
        """
        Args:
            convs (list[InferenceConv2d]): one after the other; all but the last with a ReLU.
            shortcut (nn.Module or None): applied to the input before it is added.
        """
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x (Tensor): (N, C, H, W).

        Returns:
            Tensor: (N, C', H / stride, W / stride).
        """
        shortcut = x if self.shortcut is None else self.shortcut(x)
        for conv in self.convs[:-1]:
            x = conv(x)
        inplace = self.owns_input or self.shortcut is not None
        return self.convs[-1].add(x, shortcut, relu=True, inplace=inplace)


def replace_blocks(root: nn.Module) -> None:
    """Replace the residual blocks of timm's and Detectron2's ResNets whose norms are all folded.

    Args:
        root (nn.Module): changed in place; after its norms are folded.
    """
    for parent in list(root.modules()):
        for name, child in list(parent.named_children()):
            new = _replacement(child)
            if new is not None:
                setattr(parent, name, new)
        if isinstance(parent, nn.Sequential):
            for before, block in zip(parent, list(parent)[1:]):
                if isinstance(before, InferenceResidualBlock):
                    # The backbone returns the outputs of the last blocks only.
                    block.owns_input = True


def _replacement(block: nn.Module) -> nn.Module | None:
    parts = dict(block.named_children())
    if type(block) is d2_resnet.BasicStem and _are_plain([block.conv1]):
        block.conv1.relu = True
        stem = nn.Sequential(block.conv1, nn.MaxPool2d(3, stride=2, padding=1))
        stem.stride = block.stride  # which ResNet reads
        return stem
    convs = [parts.pop(name) for name in ("conv1", "conv2", "conv3") if name in parts]
    if type(block) in (d2_resnet.BasicBlock, d2_resnet.BottleneckBlock):
        if not _are_plain(convs):
            return None
        for conv in convs[:-1]:
            conv.relu = True
        return InferenceResidualBlock(convs, block.shortcut)
    if type(block) in (timm_resnet.BasicBlock, timm_resnet.Bottleneck):
        last, shortcut = parts.pop(f"act{len(convs)}"), parts.pop("downsample", None)
        # The other parts are norms and activations, which are in the convolutions then.
        is_folded = all(type(part) is nn.Identity for part in parts.values())
        if is_folded and type(last) is nn.ReLU and _are_plain(convs, relu=True):
            return InferenceResidualBlock(convs, shortcut)
    return None


def _are_plain(convs: List[nn.Module], relu: bool = False) -> bool:
    """Whether convolutions are for inference, and nothing follows but the ReLU of all but one."""
    relus = [relu] * (len(convs) - 1) + [False]
    return all(
        isinstance(conv, InferenceConv2d) and conv.relu is has_relu and not conv.has_more
        for conv, has_relu in zip(convs, relus)
    )


class InferenceFPN(FPN):
    """``FPN`` whose lateral convolutions add the features from the level above."""

    def __init__(self, fpn: FPN):
        """
        Args:
            fpn (FPN): a stock one, whose convolutions are replaced by :class:`InferenceConv2d`.
        """
        nn.Module.__init__(self)
        vars(self).update(vars(fpn))
        # The stock lists, coarsest level first, have the convolutions from before.
        convs = list(self.named_children())[::-1]
        self.lateral_convs = [conv for name, conv in convs if name.startswith("fpn_lateral")]
        self.output_convs = [conv for name, conv in convs if name.startswith("fpn_output")]

    def forward(self, x: torch.Tensor) -> Dict[str, torch.Tensor]:
        """As the stock method."""
        bottom_up = self.bottom_up(x)
        results: List[torch.Tensor] = []
        above = None
        for name, lateral, output in zip(
            self.in_features[::-1], self.lateral_convs, self.output_convs
        ):
            if above is None:
                above = lateral(bottom_up[name])
            else:
                above = F.interpolate(above, scale_factor=2.0, mode="nearest")
                above = lateral.add(bottom_up[name], above, inplace=True)
                if self._fuse_type == "avg":
                    above /= 2
            results.insert(0, output(above))
        if self.top_block is not None:
            name = self.top_block.in_feature
            top = bottom_up[name] if name in bottom_up else results[self._out_features.index(name)]
            results.extend(self.top_block(top))
        return dict(zip(self._out_features, results))


# ---- heads ----


def flatten_channels_last(head: FastRCNNConvFCHead, pooled_size: Tuple[int, int]) -> None:
    """Let a box head flatten features in their memory order; reorder the inputs of its first layer.

    Args:
        head (FastRCNNConvFCHead): changed in place; a head without linear layers stays.
        pooled_size (tuple[int, int]): height and width of its input.
    """
    layers = list(head.named_children())
    for (name, layer), (_, fc) in zip(layers, layers[1:]):
        if type(layer) is nn.Flatten and type(fc) is nn.Linear:
            weight = fc.weight.data.view(fc.out_features, -1, *pooled_size)
            fc.weight.data = weight.permute(0, 2, 3, 1).reshape(fc.out_features, -1)
            setattr(head, name, nn.Sequential(Permute([0, 2, 3, 1]), nn.Flatten()))
