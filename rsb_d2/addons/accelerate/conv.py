"""Convolutions and linear layers for inference, with what follows them fused in."""

import logging
from typing import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

logger = logging.getLogger(__name__)


def has_fused_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch has fused kernels for a device and a dtype: oneDNN's, or on a GPU cuDNN's.

    The first are what ``torch.compile`` calls on the CPU. For float16 there are none that are
    faster. cuDNN's compute float32 in TF32, so they are for lower precision alone.
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
        bias (Tensor or None): as well.
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
    """``Conv2d`` in channels-last, with a ReLU or with an addition and a ReLU in one go.

    The input is brought into channels-last where it is not, and so is the output.
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
            conv (Conv2d): for which :meth:`takes` holds.
            dtype (torch.dtype): to compute in.
            relu (bool): whether a ReLU ends it.
            after (sequence of callable): what comes before the ReLU: a norm that cannot be folded,
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
        """Whether a layer can be replaced by one of this class."""
        return (
            isinstance(conv, nn.Conv2d)
            and conv.padding_mode == "zeros"
            and not isinstance(conv.padding, str)
        )

    @property
    def has_more(self) -> bool:
        """bool: whether there is something between the convolution and its end or ReLU."""
        return bool(len(self.after) or self._functions_after)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x (Tensor): (N, C, H, W).

        Returns:
            Tensor: (N, C', H', W') in channels-last, of ``output_dtype``.
        """
        y = self._convolve(x, self.relu and not self.has_more)
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
        """``forward(x) + other``, perhaps with a ReLU on the sum.

        Args:
            x (Tensor): (N, C, H, W).
            other (Tensor): of the output's shape.
            relu (bool): of the sum.
            inplace (bool): whether ``other`` may be overwritten.

        Returns:
            Tensor: of the output's shape.
        """
        if self.is_fused and x.is_cuda and relu and not self.relu and not self.has_more:
            y = self._cudnn(x, other)
            if y is not None:
                return y
        if not self.is_fused or x.is_cuda or not x.numel() or self.relu or self.has_more:
            total = self.forward(x).add_(other)
            return total.relu_() if relu else total
        x, mine = self._to_mine(x), self._to_mine(other)
        end = ("add", 1.0, "relu" if relu else None, [], None)
        if inplace:
            return torch.ops.mkldnn._convolution_pointwise_.binary(
                mine, x, *self._arguments(), *end
            )
        return torch.ops.mkldnn._convolution_pointwise.binary(x, mine, *self._arguments(), *end)

    def _to_mine(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.weight.dtype).contiguous(memory_format=torch.channels_last)

    def _arguments(self) -> tuple:
        return self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups

    def _cudnn(self, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor | None:
        """``relu(conv(x) + other)`` by one kernel of cuDNN's; None if it has none."""
        weight, bias, padding, stride, dilation, groups = self._arguments()
        more = (bias, stride, padding, dilation, groups)
        x = self._to_mine(x)
        try:
            if other is None:
                return torch.cudnn_convolution_relu(x, weight, *more)
            return torch.cudnn_convolution_add_relu(x, weight, self._to_mine(other), 1.0, *more)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as e:  # before anything is computed
            logger.info(f"cuDNN has no fused kernel for {tuple(weight.shape)}: {e}")
            self.is_fused = False
        return None

    def _convolve(self, x: torch.Tensor, relu: bool) -> torch.Tensor:
        if self.is_fused and relu and x.is_cuda and x.numel():
            y = self._cudnn(x)
            if y is not None:
                return y
        x = self._to_mine(x)
        if self.is_fused and not x.is_cuda and x.numel():
            return torch.ops.mkldnn._convolution_pointwise(
                x, *self._arguments(), "relu" if relu else "none", [], ""
            )
        weight, bias, padding, stride, dilation, groups = self._arguments()
        y = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
        return y.relu_() if relu else y


class InferenceLinear(_InferenceLayer):
    """``Linear``, with a ReLU in one go."""

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


def fuse_all(root: nn.Module, fused: bool = True) -> None:
    """Let all layers of this module's classes call fused kernels.

    Args:
        root (nn.Module): changed in place.
        fused (bool): or not.
    """
    for module in root.modules():
        if isinstance(module, _InferenceLayer):
            module.is_fused = fused
