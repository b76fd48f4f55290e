"""Residual blocks and the FPN with their additions in the convolutions."""

from typing import Dict, List

import torch
import torch.nn.functional as F
from detectron2.modeling.backbone import resnet as d2_resnet
from detectron2.modeling.backbone.fpn import FPN
from timm.models import resnet as timm_resnet
from torch import nn

from .conv import InferenceConv2d


class InferenceResidualBlock(nn.Module):
    """The residual block of a ResNet: the sum and its ReLU belong to the last convolution."""

    # Whether the input may be overwritten, as the block before this one made it for this one only.
    owns_input = False

    def __init__(self, convs: List[InferenceConv2d], shortcut: nn.Module | None):
        """
        Args:
            convs (list[InferenceConv2d]): one after the other; all but the last with a ReLU.
            shortcut (nn.Module or None): what the input goes through before it is added.
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


class InferenceStem(nn.Module):
    """Detectron2's ``BasicStem``, whose ReLU belongs to the convolution.

    Args:
        conv (InferenceConv2d): with a ReLU.
        stride (int): of convolution and pooling, which ``ResNet`` reads.
        out_channels (int): which ``ResNet`` reads.
    """

    def __init__(self, conv: InferenceConv2d, stride: int, out_channels: int):
        super().__init__()
        self.conv1 = conv
        self.stride = stride
        self.out_channels = out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x (Tensor): (N, 3, H, W).

        Returns:
            Tensor: (N, C, H / 4, W / 4).
        """
        return F.max_pool2d(self.conv1(x), kernel_size=3, stride=2, padding=1)


def replace_blocks(root: nn.Module) -> None:
    """Replace the residual blocks of timm's and Detectron2's ResNets whose norms are all folded.

    Args:
        root (nn.Module): changed in place; after :mod:`rsb_d2.addons.accelerate.fold`.
    """
    for parent in list(root.modules()):
        for name, child in list(parent.named_children()):
            new = _replacement(child)
            if new is not None:
                setattr(parent, name, new)
        if isinstance(parent, nn.Sequential):
            for before, block in zip(parent, list(parent)[1:]):
                if isinstance(before, InferenceResidualBlock):
                    # A feature that the backbone returns is the output of the last one.
                    block.owns_input = True


def _replacement(block: nn.Module) -> nn.Module | None:
    if type(block) in (timm_resnet.BasicBlock, timm_resnet.Bottleneck):
        return _from_timm(block)
    if type(block) in (d2_resnet.BasicBlock, d2_resnet.BottleneckBlock):
        convs = [getattr(block, n) for n in ("conv1", "conv2", "conv3") if hasattr(block, n)]
        return _block(convs, block.shortcut, set_relu=True)
    if type(block) is d2_resnet.BasicStem and _is_plain(block.conv1, relu=False):
        block.conv1.relu = True
        return InferenceStem(block.conv1, block.stride, block.out_channels)
    return None


def _from_timm(block: nn.Module) -> nn.Module | None:
    numbers = (1, 2, 3) if type(block) is timm_resnet.Bottleneck else (1, 2)
    convs = [getattr(block, f"conv{i}") for i in numbers]
    between = [getattr(block, f"bn{i}") for i in numbers]
    between += [getattr(block, f"act{i}") for i in numbers[:-1]]
    between += [getattr(block, name, None) for name in ("drop_block", "aa", "se", "drop_path")]
    if any(type(m) not in (nn.Identity, type(None)) for m in between):
        return None
    last = getattr(block, f"act{numbers[-1]}")
    return _block(convs, block.downsample) if type(last) is nn.ReLU else None


def _block(
    convs: List[nn.Module], shortcut: nn.Module | None, set_relu: bool = False
) -> InferenceResidualBlock | None:
    if not all(_is_plain(conv, relu=not set_relu) for conv in convs[:-1]):
        return None
    if not _is_plain(convs[-1], relu=False):
        return None
    for conv in convs[:-1]:
        conv.relu = True
    return InferenceResidualBlock(convs, shortcut)


def _is_plain(conv: nn.Module, relu: bool) -> bool:
    """Whether a convolution is for inference, has the ReLU or has it not, and nothing else."""
    return isinstance(conv, InferenceConv2d) and conv.relu is relu and not conv.has_more


class InferenceFPN(FPN):
    """``FPN`` whose lateral convolutions add what comes from above.

    A stock ``FPN`` becomes one by setting its class and then calling :meth:`renew_lists`.
    """

    @staticmethod
    def takes(fpn: nn.Module) -> bool:
        """Whether a module is a stock FPN."""
        return type(fpn) is FPN

    def renew_lists(self) -> None:
        """Take the convolutions, which were replaced, into the lists that ``forward`` reads."""
        stages = [s for s in range(10) if hasattr(self, f"fpn_lateral{s}")][::-1]
        self.lateral_convs = [getattr(self, f"fpn_lateral{s}") for s in stages]
        self.output_convs = [getattr(self, f"fpn_output{s}") for s in stages]

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
