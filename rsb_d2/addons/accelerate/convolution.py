"""Convolutions that train sooner on a processor with AVX2 alone, as products of matrices."""

from typing import Tuple

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d as Detectron2Conv2d
from torch import nn
from torch.autograd.function import once_differentiable


def products_are_faster() -> bool:
    """Whether this processor takes longer for oneDNN's convolutions of channels-last maps.

    That is so for gradients of weights where there is AVX2 and no AVX-512.
    """
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


class _WeightGradientByProducts(torch.autograd.Function):
    """``F.conv2d`` with the gradient of its weight as a product for each place in the kernel."""

    @staticmethod
    def forward(ctx, x, weight, stride, padding, dilation):
        ctx.save_for_backward(x, weight)
        ctx.arguments = stride, padding, dilation
        return F.conv2d(x, weight, None, stride, padding, dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = torch.ops.aten.convolution_backward(
                *(grad, x, weight, None, *ctx.arguments, False, (0, 0), 1),
                output_mask=(True, False, False),
            )[0]
        if ctx.needs_input_grad[1]:
            of_weight = weight_gradient(grad, x, weight.shape[2:], *ctx.arguments)
        return of_x, of_weight, None, None, None


def weight_gradient(
    grad: torch.Tensor,
    x: torch.Tensor,
    kernel_size: Tuple[int, int],
    stride: Tuple[int, int],
    padding: Tuple[int, int],
    dilation: Tuple[int, int],
) -> torch.Tensor:
    """The gradient of the weight of a convolution with zeros around and one group.

    At each place of the kernel it is the product of the output's gradient with the cells of the
    input that the place meets, summed over all of them.

    Args:
        grad (Tensor): (N, C', H', W') of the output, best in channels-last.
        x (Tensor): (N, C, H, W), best in channels-last.
        kernel_size, stride, padding, dilation (tuple[int, int]): of the rows and the columns.

    Returns:
        Tensor: (C', C, *kernel_size) in channels-last.
    """
    height, width = grad.shape[2:]
    rows = grad.permute(1, 0, 2, 3).flatten(1)  # a view of channels-last, transposed
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1], padding[0], padding[0]))
    result = grad.new_empty(grad.shape[1], *kernel_size, x.shape[1])
    for i in range(kernel_size[0]):
        for j in range(kernel_size[1]):
            top, left = i * dilation[0], j * dilation[1]
            cells = padded[
                :,
                top : top + (height - 1) * stride[0] + 1 : stride[0],
                left : left + (width - 1) * stride[1] + 1 : stride[1],
            ]
            result[:, i, j] = rows @ cells.flatten(0, 2)
    return result.permute(0, 3, 1, 2)


def convolve(x: torch.Tensor, conv: nn.Conv2d) -> torch.Tensor:
    """What a layer's convolution gives, for training on a CPU.

    Args:
        x (Tensor): (N, C, H, W), best in channels-last.
        conv (Conv2d): for which :func:`takes` holds.

    Returns:
        Tensor: (N, C', H', W'), in channels-last where ``x`` is.
    """
    if not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or not x.numel():
        return F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation)
    if conv.kernel_size == conv.stride == (1, 1) and conv.padding == (0, 0):
        return F.linear(x.permute(0, 2, 3, 1), conv.weight.flatten(1), conv.bias).permute(
            0, 3, 1, 2
        )
    y = _WeightGradientByProducts.apply(x, conv.weight, conv.stride, conv.padding, conv.dilation)
    return y if conv.bias is None else y + conv.bias[:, None, None]


class ProductConv2d(nn.Conv2d):
    """torch's ``Conv2d`` by :func:`convolve`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As the stock method."""
        return convolve(x, self)


class ProductDetectron2Conv2d(Detectron2Conv2d):
    """Detectron2's ``Conv2d``, with its norm and activation, by :func:`convolve`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As the stock method."""
        x = convolve(x, self)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)


_FEWEST_CHANNELS = 128  # matrices with fewer columns or rows are too narrow to be faster
_CLASSES = {nn.Conv2d: ProductConv2d, Detectron2Conv2d: ProductDetectron2Conv2d}


def takes(module: nn.Module) -> bool:
    """Whether a layer can be computed so: a stock, wide one on the CPU, one group, float32."""
    return (
        type(module) in _CLASSES
        and module.groups == 1
        and min(module.in_channels, module.out_channels) >= _FEWEST_CHANNELS
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and module.weight.device.type == "cpu"
        and module.weight.dtype == torch.float32
    )


def convolve_by_products(model: nn.Module) -> None:
    """Let all layers of a model that can be computed so be, in place; weights keep their names."""
    for module in model.modules():
        if takes(module):
            module.__class__ = _CLASSES[type(module)]


def convolve_as_before(model: nn.Module) -> None:
    """Undo :func:`convolve_by_products`, for what knows plain layers only."""
    plain = {ours: stock for stock, ours in _CLASSES.items()}
    for module in model.modules():
        if type(module) in plain:
            module.__class__ = plain[type(module)]
