"""The formats of checkpoints, each recognized by its keys and converted by explicit rules.

A new format is a :class:`Format` in :data:`FORMATS`: a function that recognizes a state dict, and
one that converts it to the names of timm's model (``BACKBONE``) or of this project's detectors
(``DETECTOR``).
"""

import re
from dataclasses import dataclass
from typing import Callable, List

import torch
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.roi_heads import CascadeROIHeads
from torch import nn

from ..errors import UserError
from ..modeling.openmmlab import (
    LastLevelP6P7WithoutReLU,
    OpenMMLabCascadeROIHeads,
    OpenMMLabRetinaNet,
)
from . import torchvision_detectors
from .reading import StateDict

# What a converter returns: a backbone by the names of timm's classification model (conv1.weight,
# layer1.0.conv1.weight) ...
BACKBONE = "backbone"
# ... or a complete detector by this project's names (backbone.bottom_up.body.conv1.weight,
# backbone.fpn_lateral2.weight, proposal_generator.rpn_head.conv.weight).
DETECTOR = "detector"


@dataclass(frozen=True)
class Format:
    """A format of checkpoints.

    Args:
        name (str): what the log calls it.
        holds (str): ``BACKBONE`` or ``DETECTOR``.
        matches (callable): whether a state dict, ``{name: Tensor}``, is of this format.
        convert (callable): a state dict of this format to one that ``holds`` says; it raises
            :class:`UserError` where that cannot be done.
        differences (callable): config lines without which a model computes something else with
            converted weights than where they come from.
    """

    name: str
    holds: str
    matches: Callable[[StateDict], bool]
    convert: Callable[[StateDict], StateDict]
    differences: Callable[[nn.Module, StateDict], List[str]] = lambda model, weights: []


def recognize(weights: StateDict) -> Format:
    """The format of a state dict, by its keys.

    Args:
        weights (dict[str, Tensor]): as :func:`read_checkpoint` returns it.

    Returns:
        Format: the last of :data:`FORMATS`, timm's, if no other matches: its names differ from
        architecture to architecture.
    """
    return next(f for f in FORMATS if f.matches(weights))


def _has_prefix(*prefixes: str) -> Callable[[StateDict], bool]:
    return lambda weights: any(name.startswith(prefixes) for name in weights)


def _all_have_prefix(*prefixes: str) -> Callable[[StateDict], bool]:
    return lambda weights: all(name.startswith(prefixes) for name in weights)


def _without_prefix(prefix: str) -> Callable[[StateDict], StateDict]:
    def convert(weights: StateDict) -> StateDict:
        return {n[len(prefix) :] if n.startswith(prefix) else n: t for n, t in weights.items()}

    return convert


def _unchanged(weights: StateDict) -> StateDict:
    return weights


def _is_openmmlab_classifier(weights: StateDict) -> bool:
    return _all_have_prefix("backbone.", "neck.", "head.")(weights) and _has_prefix("backbone.")(
        weights
    )


def _refuse_stock_detector(weights: StateDict) -> StateDict:
    raise UserError(
        "a detector on Detectron2's own ResNet: its names do not tell whether its stride is in "
        "the 1x1 or the 3x3 convolution, nor whether it takes RGB or BGR, and timm's backbone "
        "would silently compute something else. If it was trained with "
        "RESNETS.STRIDE_IN_1X1 False on RGB, extract its backbone with tools/convert_weights.py"
    )


def _refuse_caffe2(weights: StateDict) -> StateDict:
    raise UserError(
        "a Caffe2 model, as Detectron2's MSRA R-50.pkl: it takes BGR and strides in its 1x1 "
        "convolutions, so timm's backbone would compute something else with its weights. Write "
        "MODEL.WEIGHTS timm://resnet50.a1_in1k, or a file of timm, torchvision or OpenMMLab"
    )


# ---- ResNets: the names of timm and torchvision, and Detectron2's ----


# The first convolution and its norm layer, those of the blocks, and those of the blocks' shortcuts.
_RESNET_TO_DETECTRON2 = (
    (re.compile(r"^conv1\."), "stem.conv1."),
    (re.compile(r"^bn1\."), "stem.conv1.norm."),
    (re.compile(r"^layer([1-4])\.(\d+)\."), lambda m: f"res{int(m[1]) + 1}.{m[2]}."),
    (re.compile(r"^(res[2-5]\.\d+)\.bn([123])\."), r"\1.conv\2.norm."),
    (re.compile(r"^(res[2-5]\.\d+)\.downsample\.0\."), r"\1.shortcut."),
    (re.compile(r"^(res[2-5]\.\d+)\.downsample\.1\."), r"\1.shortcut.norm."),
)
_RESNET_TO_TIMM = (
    (re.compile(r"^stem\.conv1\.norm\."), "bn1."),
    (re.compile(r"^stem\.conv1\."), "conv1."),
    (re.compile(r"^res([2-5])\.(\d+)\."), lambda m: f"layer{int(m[1]) - 1}.{m[2]}."),
    (re.compile(r"^(layer[1-4]\.\d+)\.conv([123])\.norm\."), r"\1.bn\2."),
    (re.compile(r"^(layer[1-4]\.\d+)\.shortcut\.norm\."), r"\1.downsample.1."),
    (re.compile(r"^(layer[1-4]\.\d+)\.shortcut\."), r"\1.downsample.0."),
)


def resnet_to_detectron2(weights: StateDict) -> StateDict:
    """Rename ``conv1.weight``, ``layer1.0.bn1.weight`` to ``stem.conv1.weight``, ``res2.0.…``.

    Args:
        weights (dict[str, Tensor]): by the names of timm and torchvision; others stay.

    Returns:
        dict[str, Tensor]: the same tensors by the names of Detectron2's ``ResNet``.
    """
    return _rename(weights, _RESNET_TO_DETECTRON2)


def resnet_to_timm(weights: StateDict) -> StateDict:
    """The inverse of :func:`resnet_to_detectron2`.

    Args:
        weights (dict[str, Tensor]): by the names of Detectron2's ``ResNet``; others stay.

    Returns:
        dict[str, Tensor]: the same tensors by the names of timm and torchvision.
    """
    return _rename(weights, _RESNET_TO_TIMM)


def _rename(weights: StateDict, rules) -> StateDict:
    renamed = {}
    for name, tensor in weights.items():
        for pattern, replacement in rules:
            name = pattern.sub(replacement, name)
        renamed[name] = tensor
    return renamed


# ---- the published detectors: OpenMMLab's names ----


# Of MMDetection 2 and 3. Only the last layers of a RetinaNet also change the order of their rows:
# MMDetection orders the 9 anchors of a cell by ratio and then by size, Detectron2 by size and then
# by ratio.

# neck.lateral_convs.0 of the two-stage detectors is of res2, of RetinaNet of res3.
_FIRST_LEVEL = {"rcnn": 2, "retinanet": 3}
_NUM_LATERAL = {"rcnn": 4, "retinanet": 3}

_OPENMMLAB_RULES = (
    (re.compile(r"^backbone\."), "backbone.bottom_up.body."),
    (re.compile(r"^rpn_head\.rpn_conv\."), "proposal_generator.rpn_head.conv."),
    (re.compile(r"^rpn_head\.rpn_cls\."), "proposal_generator.rpn_head.objectness_logits."),
    (re.compile(r"^rpn_head\.rpn_reg\."), "proposal_generator.rpn_head.anchor_deltas."),
    # Of a cascade, "bbox_head.0." ... "mask_head.2.".
    (
        re.compile(r"^roi_head\.bbox_head\.(\d+\.|)shared_fcs\.(\d+)\."),
        lambda m: f"roi_heads.box_head.{m[1]}fc{int(m[2]) + 1}.",
    ),
    (
        re.compile(r"^roi_head\.bbox_head\.(\d+\.|)fc_cls\."),
        r"roi_heads.box_predictor.\1cls_score.",
    ),
    (
        re.compile(r"^roi_head\.bbox_head\.(\d+\.|)fc_reg\."),
        r"roi_heads.box_predictor.\1bbox_pred.",
    ),
    (
        re.compile(r"^roi_head\.mask_head\.(\d+\.|)convs\.(\d+)\.conv\."),
        lambda m: f"roi_heads.mask_head.{m[1]}mask_fcn{int(m[2]) + 1}.",
    ),
    (re.compile(r"^roi_head\.mask_head\.(\d+\.|)upsample\."), r"roi_heads.mask_head.\1deconv."),
    (
        re.compile(r"^roi_head\.mask_head\.(\d+\.|)conv_logits\."),
        r"roi_heads.mask_head.\1predictor.",
    ),
    # Detectron2's subnets have a ReLU between any two convolutions.
    (
        re.compile(r"^bbox_head\.cls_convs\.(\d+)\.conv\."),
        lambda m: f"head.cls_subnet.{2 * int(m[1])}.",
    ),
    (
        re.compile(r"^bbox_head\.reg_convs\.(\d+)\.conv\."),
        lambda m: f"head.bbox_subnet.{2 * int(m[1])}.",
    ),
    (re.compile(r"^bbox_head\.retina_cls\."), "head.cls_score."),
    (re.compile(r"^bbox_head\.retina_reg\."), "head.bbox_pred."),
)
_NECK = re.compile(r"^neck\.(lateral|fpn)_convs\.(\d+)\.conv\.(weight|bias)$")

_RETINANET_SIZES = 3
_DELTAS = 4


def is_openmmlab_detector(weights: StateDict) -> bool:
    """Whether a state dict is of MMDetection's Faster, Mask or Cascade R-CNN, or its RetinaNet.

    Args:
        weights (dict[str, Tensor]): as :func:`read_checkpoint` returns it.
    """
    return "neck.lateral_convs.0.conv.weight" in weights and (
        "rpn_head.rpn_cls.weight" in weights or "bbox_head.retina_cls.weight" in weights
    )


def from_openmmlab(weights: StateDict) -> StateDict:
    """Bring a detector of MMDetection to the names and the order of anchors of this project's.

    Args:
        weights (dict[str, Tensor]): of Faster, Mask or Cascade R-CNN, or RetinaNet, on a ResNet
            with FPN.

    Returns:
        dict[str, Tensor]: all of them.

    Raises:
        UserError: if there is a tensor that none of these has.
    """
    kind = "retinanet" if "bbox_head.retina_cls.weight" in weights else "rcnn"
    converted, unknown = {}, []
    for name, tensor in weights.items():
        new_name = _fpn_name(name, kind) or _renamed(name)
        if new_name is None:
            unknown.append(name)
        elif name.startswith(("bbox_head.retina_cls.", "bbox_head.retina_reg.")):
            converted[new_name] = _sizes_first(
                tensor, len(weights["bbox_head.retina_reg.bias"]) // _DELTAS
            )
        else:
            converted[new_name] = tensor
    if unknown:
        raise UserError(
            f"a detector of OpenMMLab of another kind ({', '.join(unknown[:3])}): its Faster, Mask "
            "and Cascade R-CNN and RetinaNet on a ResNet with FPN are read"
        )
    return converted


def openmmlab_differences(model: nn.Module, weights: StateDict) -> List[str]:
    """How a model differs from what MMDetection computes with the same weights.

    Args:
        model (nn.Module): a detector.
        weights (dict[str, Tensor]): as :func:`from_openmmlab` returns it.

    Returns:
        list[str]: the config's lines that would make it equal; none for the published configs.
    """
    lines = []
    if "head.cls_score.weight" in weights and hasattr(model, "head"):
        if not isinstance(model, OpenMMLabRetinaNet):
            lines.append("MODEL.META_ARCHITECTURE OpenMMLabRetinaNet")
        top_block = getattr(model.backbone, "top_block", None)
        has_relu = not isinstance(top_block, LastLevelP6P7WithoutReLU)
        if isinstance(top_block, LastLevelP6P7) and has_relu:
            lines.append("MODEL.RETINANET.P7_RELU False")
    heads = getattr(model, "roi_heads", None)
    if "roi_heads.box_predictor.2.cls_score.weight" in weights and isinstance(
        heads, CascadeROIHeads
    ):
        if not isinstance(heads, OpenMMLabCascadeROIHeads):
            lines.append("MODEL.ROI_HEADS.NAME OpenMMLabCascadeROIHeads")
        x_weight = heads.box_predictor[-1].box2box_transform.weights[0]
        if abs(x_weight - 1 / 0.033) > 1e-3:
            lines.append("MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS as cascade_mask_rcnn_rsb_1x")
    return lines


def _renamed(name: str) -> str | None:
    for pattern, replacement in _OPENMMLAB_RULES:
        new_name, count = pattern.subn(replacement, name)
        if count:
            return new_name
    return None


def _fpn_name(name: str, kind: str) -> str | None:
    found = _NECK.match(name)
    if not found:
        return None
    which, index, parameter = found[1], int(found[2]), found[3]
    if index < _NUM_LATERAL[kind]:
        level = _FIRST_LEVEL[kind] + index
        return f"backbone.fpn_{'lateral' if which == 'lateral' else 'output'}{level}.{parameter}"
    if kind == "retinanet" and which == "fpn":  # the extra levels, 6 and 7
        return f"backbone.top_block.p{_FIRST_LEVEL[kind] + index}.{parameter}"
    return None


def _sizes_first(rows: torch.Tensor, num_anchors: int) -> torch.Tensor:
    """Reorder rows of shape (ratios * sizes * K, ...) to (sizes * ratios * K, ...)."""
    by_anchor = rows.reshape(num_anchors // _RETINANET_SIZES, _RETINANET_SIZES, -1, *rows.shape[1:])
    return by_anchor.transpose(0, 1).reshape(rows.shape)


# ---- all formats ----


PROJECT_BACKBONE = Format(
    "rsb_d2 backbone", BACKBONE, _all_have_prefix("body."), _without_prefix("body.")
)
PROJECT_CLASSIFIER = Format(
    "rsb_d2 image classifier", BACKBONE, _all_have_prefix("network."), _without_prefix("network.")
)
PROJECT_DETECTOR = Format(
    "rsb_d2 detector",
    DETECTOR,
    _has_prefix("backbone.bottom_up.body.", "backbone.body."),
    _unchanged,
)
STOCK_DETECTOR = Format(
    "Detectron2 detector",
    DETECTOR,
    _has_prefix("backbone.bottom_up.", "backbone.stem.conv1.", "backbone.res2.0."),
    _refuse_stock_detector,
)
DETECTRON2_RESNET = Format("Detectron2 ResNet", BACKBONE, _has_prefix("res2.0."), resnet_to_timm)
CAFFE2_RESNET = Format("Caffe2 ResNet", BACKBONE, _has_prefix("res2_0_branch2a_"), _refuse_caffe2)
OPENMMLAB_CLASSIFIER = Format(
    "OpenMMLab classification model",
    BACKBONE,
    _is_openmmlab_classifier,
    _without_prefix("backbone."),
)
OPENMMLAB_DETECTOR = Format(
    "OpenMMLab detector",
    DETECTOR,
    is_openmmlab_detector,
    from_openmmlab,
    openmmlab_differences,
)
TORCHVISION_DETECTOR = Format(
    "torchvision detector",
    DETECTOR,
    torchvision_detectors.is_torchvision_detector,
    torchvision_detectors.from_torchvision,
    torchvision_detectors.differences,
)
TIMM_CLASSIFIER = Format(
    "timm or torchvision classification model", BACKBONE, lambda weights: True, _unchanged
)

# The first that matches counts.
FORMATS = [
    PROJECT_BACKBONE,
    PROJECT_CLASSIFIER,
    TORCHVISION_DETECTOR,  # before the next one: its backbone has the names of a plain one
    PROJECT_DETECTOR,
    STOCK_DETECTOR,
    DETECTRON2_RESNET,
    CAFFE2_RESNET,
    OPENMMLAB_DETECTOR,
    OPENMMLAB_CLASSIFIER,
    TIMM_CLASSIFIER,
]
