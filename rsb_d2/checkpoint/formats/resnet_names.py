"""ResNets: timm's (and torchvision's) names to Detectron2's and back."""

import re
from typing import NamedTuple

from ..reading import StateDict

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


class ResNetShape(NamedTuple):
    """What Detectron2's ``MODEL.RESNETS`` calls ``DEPTH``, ``NUM_GROUPS``, ``WIDTH_PER_GROUP``."""

    depth: int
    num_groups: int = 1
    width_per_group: int = 64

    @property
    def res2_out_channels(self) -> int:
        """int: ``MODEL.RESNETS.RES2_OUT_CHANNELS``."""
        return 64 if self.depth in (18, 34) else 256


# timm's names of the plain ResNets, which are the ones that Detectron2 can build.
PLAIN_RESNETS = {
    "resnet18": ResNetShape(18),
    "resnet34": ResNetShape(34),
    "resnet50": ResNetShape(50),
    "resnet101": ResNetShape(101),
    "resnet152": ResNetShape(152),
    "resnext50_32x4d": ResNetShape(50, 32, 4),
    "resnext101_32x4d": ResNetShape(101, 32, 4),
    "resnext101_32x8d": ResNetShape(101, 32, 8),
    "resnext101_64x4d": ResNetShape(101, 64, 4),
    "wide_resnet50_2": ResNetShape(50, 1, 128),
    "wide_resnet101_2": ResNetShape(101, 1, 128),
}


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
