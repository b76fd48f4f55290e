"""ResNets: timm's (and torchvision's) names to Detectron2's and back."""

import re

from ...modeling.resnets.shape import PLAIN_RESNETS, ResNetShape
from ..reading import StateDict

__all__ = ["PLAIN_RESNETS", "ResNetShape", "to_detectron2", "to_timm"]

# The first convolution and its norm layer, those of the blocks, and those of the blocks' shortcuts.
_TO_DETECTRON2 = (
    (re.compile(r"^conv1\."), "stem.conv1."),
    (re.compile(r"^bn1\."), "stem.conv1.norm."),
    (re.compile(r"^layer([1-4])\.(\d+)\."), lambda m: f"res{int(m[1]) + 1}.{m[2]}."),
    (re.compile(r"^(res[2-5]\.\d+)\.bn([123])\."), r"\1.conv\2.norm."),
    (re.compile(r"^(res[2-5]\.\d+)\.downsample\.0\."), r"\1.shortcut."),
    (re.compile(r"^(res[2-5]\.\d+)\.downsample\.1\."), r"\1.shortcut.norm."),
)
_TO_TIMM = (
    (re.compile(r"^stem\.conv1\.norm\."), "bn1."),
    (re.compile(r"^stem\.conv1\."), "conv1."),
    (re.compile(r"^res([2-5])\.(\d+)\."), lambda m: f"layer{int(m[1]) - 1}.{m[2]}."),
    (re.compile(r"^(layer[1-4]\.\d+)\.conv([123])\.norm\."), r"\1.bn\2."),
    (re.compile(r"^(layer[1-4]\.\d+)\.shortcut\.norm\."), r"\1.downsample.1."),
    (re.compile(r"^(layer[1-4]\.\d+)\.shortcut\."), r"\1.downsample.0."),
)


def to_detectron2(weights: StateDict) -> StateDict:
    """Rename ``conv1.weight``, ``layer1.0.bn1.weight`` to ``stem.conv1.weight``, ``res2.0.…``.

    Args:
        weights (dict[str, Tensor]): by the names of timm and torchvision; others stay.

    Returns:
        dict[str, Tensor]: the same tensors by the names of Detectron2's ``ResNet``.
    """
    return _rename(weights, _TO_DETECTRON2)


def to_timm(weights: StateDict) -> StateDict:
    """The inverse of :func:`to_detectron2`.

    Args:
        weights (dict[str, Tensor]): by the names of Detectron2's ``ResNet``; others stay.

    Returns:
        dict[str, Tensor]: the same tensors by the names of timm and torchvision.
    """
    return _rename(weights, _TO_TIMM)


def _rename(weights: StateDict, rules) -> StateDict:
    renamed = {}
    for name, tensor in weights.items():
        for pattern, replacement in rules:
            name = pattern.sub(replacement, name)
        renamed[name] = tensor
    return renamed
