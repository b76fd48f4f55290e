"""What Detectron2's ``MODEL.RESNETS`` says of a ResNet, and timm's models in these words."""

import re
from functools import cache
from typing import Dict, NamedTuple

import timm
import torch
from timm.models import resnet as timm_resnet
from torch import nn


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
    "resnext101_32x16d": ResNetShape(101, 32, 16),
    "resnext101_32x32d": ResNetShape(101, 32, 32),
    "resnext101_64x4d": ResNetShape(101, 64, 4),
    "wide_resnet50_2": ResNetShape(50, 1, 128),
    "wide_resnet101_2": ResNetShape(101, 1, 128),
}


# The keys of MODEL.RESNETS that say which network it is.
RESNETS_KEYS = ("DEPTH", "NUM_GROUPS", "WIDTH_PER_GROUP", "RES2_OUT_CHANNELS", "STEM_OUT_CHANNELS")


@cache
def resnets_keys(name: str) -> Dict[str, int | None]:
    """A timm model in the words of ``MODEL.RESNETS``, read from the model itself.

    Args:
        name (str): timm's name of a model that there is, with or without a tag.

    Returns:
        dict[str, int or None]: of :data:`RESNETS_KEYS`; ``None`` where the word means nothing for
        the architecture.
    """
    architecture = name.partition(".")[0]
    with torch.device("meta"):
        model = timm.create_model(architecture)
    channels = {info["reduction"]: info["num_chs"] for info in _feature_info(model)}
    keys = {"DEPTH": None, "NUM_GROUPS": None, "WIDTH_PER_GROUP": None}
    keys.update(RES2_OUT_CHANNELS=channels.get(4), STEM_OUT_CHANNELS=channels.get(2))
    if not isinstance(model, timm_resnet.ResNet):
        # resnetv2_101, res2net101_26w_4s: timm counts the layers in the name.
        found = re.search(r"resne\w*?(\d{2,3})", architecture)
        keys["DEPTH"] = int(found[1]) if found else None
        return keys
    stages = [model.layer1, model.layer2, model.layer3, model.layer4]
    convs = sum(
        isinstance(m, nn.Conv2d) for n, m in model.layer1[0].named_children() if "conv" in n
    )
    conv2 = model.layer1[0].conv2
    keys["DEPTH"] = 2 + convs * sum(map(len, stages))
    if isinstance(conv2, nn.Conv2d):
        keys["NUM_GROUPS"] = conv2.groups
        keys["WIDTH_PER_GROUP"] = conv2.out_channels // conv2.groups
    return keys


def _feature_info(model: nn.Module) -> list:
    info = getattr(model, "feature_info", [])
    return info if isinstance(info, list) else []
