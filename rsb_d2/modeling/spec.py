"""The backbone that a config describes: ``MODEL.TIMM``, and Detectron2's own ``MODEL.RESNETS``.

A stock YAML describes its ResNet under ``MODEL.RESNETS``. With a timm backbone each of these keys
is translated for timm, or refused in one line. Where ``MODEL.TIMM.NAME`` is empty, the backbone is
the one that ``MODEL.RESNETS`` describes. Where it names a model, that model is built, and a key of
``MODEL.RESNETS`` that is not at Detectron2's default must agree with it. The defaults themselves
mean nothing, because every config has them.
"""

import logging
import re
from collections.abc import Collection
from functools import cache
from typing import Dict, List, NamedTuple, Sequence, Tuple

import timm
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    ROI_HEADS_REGISTRY,
    GeneralizedRCNN,
    PanopticFPN,
    ProposalNetwork,
    SemanticSegmentor,
)
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from timm.models import is_model_pretrained
from timm.models import resnet as timm_resnet
from torch import nn

from ..config.nodes import get_value
from ..errors import UserError
from ..registration import backbone_name, reachable_name, roi_heads_name
from .norm import NORM_POLICIES
from .timm_backbone import check_model_name

PLAIN, C4 = "build_timm_backbone", "build_timm_c4_backbone"
FPN, RETINANET_FPN = "build_timm_fpn_backbone", "build_timm_retinanet_fpn_backbone"
# The registered builders. Detectron2 has one builder for C4 and DC5.
BUILDERS = (PLAIN, C4, FPN, RETINANET_FPN)
C4_HEADS = "TimmRes5ROIHeads"

_MODEL = get_cfg().MODEL
_RESNETS = _MODEL.RESNETS
_STAGES = ["res2", "res3", "res4", "res5"]
# Rotated boxes would need other data, operators and evaluators.
_ROTATED = {
    "MODEL.PROPOSAL_GENERATOR.NAME": ("RRPN", "RPN"),
    "MODEL.ANCHOR_GENERATOR.NAME": ("RotatedAnchorGenerator", "DefaultAnchorGenerator"),
    "MODEL.ROI_HEADS.NAME": ("RROIHeads", "StandardROIHeads"),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": ("ROIAlignRotated", "ROIAlignV2"),
}


class ResNetShape(NamedTuple):
    """``MODEL.RESNETS.DEPTH``, ``NUM_GROUPS`` and ``WIDTH_PER_GROUP`` of a ResNet."""

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

# The keys of MODEL.RESNETS that tell which network it is.
RESNETS_KEYS = ("DEPTH", "NUM_GROUPS", "WIDTH_PER_GROUP", "RES2_OUT_CHANNELS", "STEM_OUT_CHANNELS")


class BackboneSpec(NamedTuple):
    """The arguments of :class:`rsb_d2.TimmBackbone` but for the channels of the images."""

    name: str
    out_features: List[str]
    norm: str
    norm_eval: bool
    freeze_at: int
    res5_dilation: int


def is_timm_backbone(cfg: CfgNode) -> bool:
    """Whether a config's backbone is one of this project's."""
    return backbone_name(cfg) in BUILDERS


def is_c4(cfg: CfgNode) -> bool:
    """Whether a config's ROI heads compute res5 from crops of res4."""
    return _has_roi_heads(cfg) and roi_heads_name(cfg) in ("Res5ROIHeads", C4_HEADS)


def backbone_spec(cfg: CfgNode, explicit_keys: Collection[str] = ()) -> BackboneSpec:
    """Read the description of the backbone from ``MODEL.TIMM`` and ``MODEL.RESNETS``.

    Args:
        cfg (CfgNode): with the keys of :func:`rsb_d2.add_rsb_config`; not changed.
        explicit_keys (collection of str): keys of ``MODEL.RESNETS`` that the user wrote, which
            count even where the value is the default: ``"DEPTH"``.

    Raises:
        UserError: if timm has no such model, if a key cannot be translated for it, or if keys
            contradict each other.
    """
    resnets = cfg.MODEL.RESNETS
    if any(resnets.DEFORM_ON_PER_STAGE):
        raise UserError(
            f"MODEL.RESNETS.DEFORM_ON_PER_STAGE: {list(resnets.DEFORM_ON_PER_STAGE)}: timm's "
            "ResNets have no deformable convolutions; write [False, False, False, False]"
        )
    name = cfg.MODEL.TIMM.NAME or _name_of(resnets)
    check_model_name(name)
    _check_norm_of_model(name, resnets.NORM)
    _check_agreement(cfg, name, explicit_keys)
    norm, norm_eval = _norm(cfg, "NORM" in explicit_keys)
    return BackboneSpec(
        name,
        _out_features(cfg),
        norm,
        norm_eval,
        cfg.MODEL.BACKBONE.FREEZE_AT,
        _res5_dilation(cfg),
    )


def classifier_spec(cfg: CfgNode) -> BackboneSpec:
    """Read the description of an image classifier's network, with all of its stages."""
    name = cfg.MODEL.TIMM.NAME or _name_of(cfg.MODEL.RESNETS)
    check_model_name(name)
    norm, norm_eval = cfg.MODEL.TIMM.NORM or "BN", cfg.MODEL.TIMM.NORM_EVAL is not False
    return BackboneSpec(name, list(cfg.MODEL.TIMM.OUT_FEATURES), norm, norm_eval, 0, 1)


@cache
def resnets_keys(name: str) -> Dict[str, int | None]:
    """Return :data:`RESNETS_KEYS` of a timm model; None for keys without a meaning for it."""
    architecture = name.partition(".")[0]
    with torch.device("meta"):
        model = timm.create_model(architecture)
    infos = getattr(model, "feature_info", [])
    channels = {i["reduction"]: i["num_chs"] for i in infos} if isinstance(infos, list) else {}
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


def stride_in_1x1_message(name: str) -> str:
    """Return a note on ``RESNETS.STRIDE_IN_1X1`` True, the default and a property of weights."""
    return (
        "MODEL.RESNETS.STRIDE_IN_1X1 True is how Detectron2's MSRA weights were trained; timm's "
        f"{name} strides in its 3x3 convolutions, as its own weights were."
    )


def _name_of(resnets: CfgNode) -> str:
    """timm's name of the ResNet that ``MODEL.RESNETS`` describes."""
    shape = ResNetShape(resnets.DEPTH, resnets.NUM_GROUPS, resnets.WIDTH_PER_GROUP)
    for name, known in PLAIN_RESNETS.items():
        if known == shape:
            return name
    near = [n for n, s in PLAIN_RESNETS.items() if s[1:] == shape[1:] or s[0] == shape[0]]
    # Models of the same width come before those of the same depth.
    near.sort(key=lambda n: (PLAIN_RESNETS[n][1:] != shape[1:], PLAIN_RESNETS[n][0] - shape[0]))
    there_are = ", ".join(
        f"{{DEPTH: {s.depth}, NUM_GROUPS: {s.num_groups}, WIDTH_PER_GROUP: {s.width_per_group}}}"
        for s in (PLAIN_RESNETS[n] for n in near or ["resnet50", "resnet101"])
    )
    given = [k for k in ("DEPTH", "NUM_GROUPS", "WIDTH_PER_GROUP") if resnets[k] != _RESNETS[k]]
    keys = ", ".join(f"MODEL.RESNETS.{key}" for key in given)
    raise UserError(
        f"{keys}: timm has no ResNet of DEPTH {shape.depth}, NUM_GROUPS "
        f"{shape.num_groups} and WIDTH_PER_GROUP {shape.width_per_group}; write MODEL.RESNETS "
        f"{there_are}, or timm's name of a model in MODEL.TIMM.NAME"
    )


def _check_agreement(cfg: CfgNode, name: str, explicit_keys: Collection[str]) -> None:
    resnets = cfg.MODEL.RESNETS
    if not any(key in explicit_keys or resnets[key] != _RESNETS[key] for key in RESNETS_KEYS):
        return  # checking them would cost the building of a model
    for key, actual in resnets_keys(name).items():
        value = resnets[key]
        # Where a key has no meaning for the architecture, its default is all that one can write.
        is_default = value == _RESNETS[key] and (key not in explicit_keys or actual is None)
        if is_default or value == actual:
            continue
        has = "has no such value" if actual is None else f"has {actual}"
        if not cfg.MODEL.TIMM.NAME:  # DEPTH, NUM_GROUPS and WIDTH_PER_GROUP name the model
            raise UserError(
                f"MODEL.RESNETS.{key}: {value}: timm's {name}, which the other keys of "
                f"MODEL.RESNETS describe, {has}; write {actual}"
            )
        raise UserError(
            f"MODEL.TIMM.NAME is {name}, but MODEL.RESNETS.{key} is {value}, and timm's {name} "
            f'{has}; write MODEL.RESNETS.{key} {actual or _RESNETS[key]}, or MODEL.TIMM.NAME "" '
            "for the model that MODEL.RESNETS describes"
        )


def _check_norm_of_model(name: str, norm: str) -> None:
    if norm in NORM_POLICIES or (norm == "GN" and _has_group_norm(name)):
        return
    with_group_norm = f"{name.partition('.')[0]}_gn"
    advice = f"write {', '.join(NORM_POLICIES[:-1])} or {NORM_POLICIES[-1]}"
    if norm == "GN" and timm.is_model(with_group_norm):
        tag = timm.get_pretrained_cfg(with_group_norm).tag
        advice += (
            f", or MODEL.TIMM.NAME {with_group_norm} with MODEL.WEIGHTS "
            f"timm://{with_group_norm}.{tag}, which was trained with group norm"
        )
    raise UserError(
        f"MODEL.RESNETS.NORM: {norm!r} cannot be made of the batch norm that timm's {name} and its "
        f"weights have; {advice}"
    )


def _has_group_norm(name: str) -> bool:
    return name.partition(".")[0].endswith("_gn")


def _norm(cfg: CfgNode, is_explicit: bool) -> tuple:
    """The norm policy, and whether statistics stay fixed where weight and bias train."""
    given, norm_eval, stock = cfg.MODEL.TIMM.NORM, cfg.MODEL.TIMM.NORM_EVAL, cfg.MODEL.RESNETS.NORM
    if norm_eval not in (None, True, False):
        raise UserError(f"MODEL.TIMM.NORM_EVAL is {norm_eval!r}; write True or False")
    if stock == "GN":  # of the model itself, which has no other
        stock = "BN"
    is_explicit = is_explicit or stock != _RESNETS.NORM
    if given:
        if is_explicit and given != stock and given in NORM_POLICIES:
            raise UserError(
                f"MODEL.TIMM.NORM is {given}, but MODEL.RESNETS.NORM is {cfg.MODEL.RESNETS.NORM}; "
                f"write the same in both, or MODEL.RESNETS.NORM {_RESNETS.NORM}, the default"
            )
        return given, norm_eval is not False
    if not is_explicit and cfg.MODEL.TIMM.NAME:
        return "BN", norm_eval is not False
    # As in Detectron2's ResNet, "BN" and "SyncBN" learn their statistics.
    return stock, stock == "FrozenBN" if norm_eval is None else norm_eval


def _out_features(cfg: CfgNode) -> List[str]:
    given, stock = list(cfg.MODEL.TIMM.OUT_FEATURES), list(cfg.MODEL.RESNETS.OUT_FEATURES)
    is_explicit = stock != list(_RESNETS.OUT_FEATURES)
    if is_explicit and (not stock or set(stock) - set(_STAGES)):
        raise UserError(
            f"MODEL.RESNETS.OUT_FEATURES: {stock} must be of {_STAGES}; timm's stem has stride 2 "
            "and Detectron2's 4, so that one is named in MODEL.TIMM.OUT_FEATURES"
        )
    builder, named = backbone_name(cfg), bool(cfg.MODEL.TIMM.NAME)
    wanted = given
    if not wanted:
        if builder in (FPN, RETINANET_FPN):
            wanted = _STAGES if named else list(cfg.MODEL.FPN.IN_FEATURES)
        elif is_explicit or not named or builder == C4:
            wanted = stock
        else:
            wanted = _STAGES
    # Features that the FPN does not take are not built.
    missing = [f for f in stock if f not in wanted] if is_explicit and given else []
    if missing:
        raise UserError(
            f"MODEL.RESNETS.OUT_FEATURES: {stock} has {missing[0]}, which is not in "
            f"MODEL.TIMM.OUT_FEATURES {given}; write the same in both"
        )
    if builder in (FPN, RETINANET_FPN):
        _check_fpn(cfg, wanted, stock if is_explicit else wanted)
    if builder == C4 and "res5" in wanted:
        key = "TIMM" if given else "RESNETS"
        raise UserError(
            f"MODEL.{key}.OUT_FEATURES: {wanted}: the ROI heads of C4 compute res5 themselves; "
            "write [res4]"
        )
    return wanted


def _check_fpn(cfg: CfgNode, wanted: List[str], stock: List[str]) -> None:
    in_features = list(cfg.MODEL.FPN.IN_FEATURES)
    key, features = "TIMM", wanted
    if not [f for f in in_features if f not in wanted]:
        key, features = "RESNETS", stock
    if not in_features or [f for f in in_features if f not in features]:
        raise UserError(
            f"MODEL.FPN.IN_FEATURES: {in_features} must be of MODEL.{key}.OUT_FEATURES "
            f"{features or _STAGES}; for the published detectors [res2, res3, res4, res5], for "
            "RetinaNet [res3, res4, res5]"
        )


def check_features(cfg: CfgNode, features: List[str]) -> None:
    """Check that the backbone has the features that the heads of a config take."""
    keys = []
    if _is_a(cfg, GeneralizedRCNN, ProposalNetwork) and cfg.MODEL.PROPOSAL_GENERATOR.NAME == "RPN":
        keys.append("MODEL.RPN.IN_FEATURES")
    if _has_roi_heads(cfg):
        keys.append("MODEL.ROI_HEADS.IN_FEATURES")
    if _is_a(cfg, RetinaNet):
        keys.append("MODEL.RETINANET.IN_FEATURES")
    if _is_a(cfg, PanopticFPN, SemanticSegmentor):
        keys.append("MODEL.SEM_SEG_HEAD.IN_FEATURES")
    for key in keys:
        wanted = list(get_value(cfg, key))
        missing = [f for f in wanted if f not in features]
        if missing:
            raise UserError(
                f"{key}: {wanted}: {cfg.MODEL.BACKBONE.NAME} has no {missing[0]}, "
                f"only {', '.join(features)}; write some of these, or another MODEL.BACKBONE.NAME"
            )


def _res5_dilation(cfg: CfgNode) -> int:
    dilation, builder = cfg.MODEL.RESNETS.RES5_DILATION, backbone_name(cfg)
    if dilation not in (1, 2):
        raise UserError(f"MODEL.RESNETS.RES5_DILATION: {dilation}: write 1, or 2 for stride 16")
    if dilation == 2 and builder in BUILDERS and builder != PLAIN:
        why = "the FPN needs strides that double"
        if builder == C4:
            why = "the ROI heads of C4 compute res5 from crops"
        raise UserError(
            f"MODEL.RESNETS.RES5_DILATION: 2 with {builder}: {why}; write 1, or "
            f"MODEL.BACKBONE.NAME {PLAIN}"
        )
    return dilation


def check_heads(cfg: CfgNode) -> None:
    """Check that the heads of a config work with a timm backbone."""
    for key, (rotated, plain) in _ROTATED.items():
        if get_value(cfg, key) == rotated and (_has_roi_heads(cfg) or "ROI" not in key):
            raise UserError(f"{key}: {rotated}: rotated boxes are not supported; write {plain}")
    if not _has_roi_heads(cfg):
        return
    builder, heads = backbone_name(cfg), roi_heads_name(cfg)
    if heads == "Res5ROIHeads":
        fitting = "" if builder == C4 else f"MODEL.BACKBONE.NAME {C4} and "
        raise UserError(
            "MODEL.ROI_HEADS.NAME: Res5ROIHeads has a res5 of Detectron2's own with random "
            f"weights; write {fitting}MODEL.ROI_HEADS.NAME {C4_HEADS}"
        )
    if heads == C4_HEADS and builder != C4:
        raise UserError(f"MODEL.ROI_HEADS.NAME: {heads} needs MODEL.BACKBONE.NAME {C4}")
    if heads == C4_HEADS and cfg.MODEL.KEYPOINT_ON:
        raise UserError(
            f"MODEL.KEYPOINT_ON: {heads}, as Detectron2's Res5ROIHeads, has no keypoints; write "
            "MODEL.ROI_HEADS.NAME StandardROIHeads with an FPN"
        )


def _has_roi_heads(cfg: CfgNode) -> bool:
    """Whether the meta architecture reads ``MODEL.ROI_HEADS``; the others have its default."""
    return _is_a(cfg, GeneralizedRCNN)


def _is_a(cfg: CfgNode, *classes: type) -> bool:
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in META_ARCH_REGISTRY:
        return False
    architecture = META_ARCH_REGISTRY.get(name)
    return isinstance(architecture, type) and issubclass(architecture, classes)


# ---- the format of images ----


# Detectron2's own weights take BGR, with the standard deviation in their first layer or outside.
_STOCK_MEAN, _STOCK_STDS = _MODEL.PIXEL_MEAN, (_MODEL.PIXEL_STD, [57.375, 57.12, 58.395])

# In gray levels of 255: numbers may be rounded to one decimal; a swapped channel differs by 1.
_PIXEL_TOLERANCE = 0.1


def check_pixel_format(cfg: CfgNode, name: str) -> None:
    """Check that the images of a config have the format that a timm model was trained on.

    A wrong channel order, mean or scale costs several AP, and nothing else would report it.
    """
    if pixels_fit(name, cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD):
        return
    mean, std = pixel_statistics(name)
    raise UserError(
        f"INPUT.FORMAT {cfg.INPUT.FORMAT}, MODEL.PIXEL_MEAN {list(cfg.MODEL.PIXEL_MEAN)} and "
        f"MODEL.PIXEL_STD {list(cfg.MODEL.PIXEL_STD)} do not fit timm's {name}; write "
        f"INPUT: {{FORMAT: RGB}} and "
        f"MODEL: {{PIXEL_MEAN: {rounded(mean)}, PIXEL_STD: {rounded(std)}}}"
    )


def has_default_pixels(cfg: CfgNode) -> bool:
    """Whether a config has the image format of Detectron2's defaults or of its own weights."""
    pixels = cfg.INPUT.FORMAT, list(cfg.MODEL.PIXEL_MEAN), list(cfg.MODEL.PIXEL_STD)
    return pixels in [("BGR", _STOCK_MEAN, std) for std in _STOCK_STDS]


def pixel_statistics(name: str) -> Tuple[List[float], List[float]]:
    """Return mean and standard deviation (RGB, 0 ... 255) that a timm model was trained with."""
    pretrained_cfg = timm.get_pretrained_cfg(name)
    return tuple(
        [255.0 * x for x in values] for values in (pretrained_cfg.mean, pretrained_cfg.std)
    )


def pixels_fit(
    name: str, image_format: str, pixel_mean: Sequence[float], pixel_std: Sequence[float]
) -> bool:
    """Whether a timm model was trained on images of this format and normalization."""
    mean, std = pixel_statistics(name)
    return image_format == "RGB" and _close(pixel_mean, mean) and _close(pixel_std, std)


def name_of_weights(weights: str, name: str) -> str:
    """Return timm's name of the model, with the tag of the weights if they are timm's.

    Weights of one architecture may expect different image statistics.
    """
    scheme, _, given = weights.rpartition("://")
    is_of_model = scheme == "timm" and name.partition(".")[0] == given.partition(".")[0]
    return given if is_of_model and is_model_pretrained(given) else name


def _close(values: Sequence[float], expected: List[float]) -> bool:
    return len(values) == len(expected) and all(
        abs(v - e) <= _PIXEL_TOLERANCE for v, e in zip(values, expected)
    )


def rounded(values: List[float]) -> List[float]:
    return [round(v, 3) for v in values]


# ---- writing the description into a config ----

logger = logging.getLogger(__name__)


def resolve_stock_keys(cfg: CfgNode, explicit_keys: Collection[str] = ()) -> None:
    """Fill in the keys of a timm backbone that follow from Detectron2's.

    ``MODEL.TIMM`` follows from ``MODEL.RESNETS`` where it is not set, the ROI heads of C4 take
    timm's res5, and images in the format of Detectron2's own weights are converted to that of
    timm's. Images in another format stay as they are; the builder refuses a wrong one.
    """
    if not is_timm_backbone(cfg):
        return
    if backbone_name(cfg) == C4 and is_c4(cfg) and roi_heads_name(cfg) != C4_HEADS:
        cfg.MODEL.ROI_HEADS.NAME = reachable_name(ROI_HEADS_REGISTRY, C4_HEADS)
    check_heads(cfg)
    spec = backbone_spec(cfg, explicit_keys)
    if not cfg.MODEL.TIMM.NAME and cfg.MODEL.RESNETS.STRIDE_IN_1X1:
        logger.info(stride_in_1x1_message(spec.name))
    write_spec(cfg, spec)
    if has_default_pixels(cfg):
        set_pixels(cfg)


def write_spec(cfg: CfgNode, spec: BackboneSpec) -> None:
    """Write the description of a backbone into ``MODEL.TIMM``."""
    cfg.MODEL.TIMM.NAME = spec.name
    cfg.MODEL.TIMM.OUT_FEATURES = list(spec.out_features)
    cfg.MODEL.TIMM.NORM = spec.norm
    cfg.MODEL.TIMM.NORM_EVAL = spec.norm_eval


def set_pixels(cfg: CfgNode) -> None:
    """Set the format and the statistics of the images to those of timm's weights."""
    name = name_of_weights(cfg.MODEL.WEIGHTS, cfg.MODEL.TIMM.NAME)
    mean, std = ([round(x, 3) for x in values] for values in pixel_statistics(name))
    cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = "RGB", mean, std
