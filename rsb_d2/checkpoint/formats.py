"""The formats of checkpoints, each recognized by its keys and converted by explicit rules.

A new format is a :class:`Format` in :data:`FORMATS`: a function that recognizes a state dict, and
one that converts it to the names of timm's model (``BACKBONE``) or of this project's detectors
(``DETECTOR``).
"""

import re
from dataclasses import dataclass
from typing import Callable, Dict, List

import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.roi_heads import CascadeROIHeads
from torch import nn

from ..errors import UserError
from ..modeling.published import (
    LastLevelP6P7WithoutReLU,
    OpenMMLabCascadeROIHeads,
    OpenMMLabRetinaNet,
    TorchvisionAnchorGenerator,
    TorchvisionRetinaNet,
    TorchvisionROIHeads,
)
from .files import StateDict

# The result of a converter: a backbone by the names of timm's classification model (conv1.weight,
# layer1.0.conv1.weight) ...
BACKBONE = "backbone"
# ... or a complete detector by this project's names (backbone.bottom_up.body.conv1.weight,
# backbone.fpn_lateral2.weight, proposal_generator.rpn_head.conv.weight).
DETECTOR = "detector"


@dataclass(frozen=True)
class Format:
    """A format of checkpoints.

    Args:
        name (str): in the log.
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
    """Return the format of a state dict, by its keys; timm's, the last, if no other matches."""
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
    """Rename ``conv1.weight``, ``layer1.0.bn1.weight`` to ``stem.conv1.weight``, ``res2.0.…``."""
    return _rename(weights, _RESNET_TO_DETECTRON2)


def resnet_to_timm(weights: StateDict) -> StateDict:
    """The inverse of :func:`resnet_to_detectron2`."""
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
    """Whether a state dict is of MMDetection's Faster, Mask or Cascade R-CNN, or its RetinaNet."""
    return "neck.lateral_convs.0.conv.weight" in weights and (
        "rpn_head.rpn_cls.weight" in weights or "bbox_head.retina_cls.weight" in weights
    )


def from_openmmlab(weights: StateDict) -> StateDict:
    """Convert a detector of MMDetection to this project's names and order of anchors."""
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
    """Return the config lines without which a model differs from MMDetection's."""
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


# ---- torchvision's detectors ----


# Faster, Mask and Keypoint R-CNN and RetinaNet on a ResNet with FPN, of both versions
# (fasterrcnn_resnet50_fpn, fasterrcnn_resnet50_fpn_v2, ...), with today's names and with those of
# files from before torchvision 0.13.

# torchvision's outputs are COCO's category ids, of which ten do not exist; 0 is the background.
NUM_COCO_OUTPUTS = 91
COCO_IDS = [c["id"] for c in COCO_CATEGORIES if c["isthing"]]

# eps of the frozen batch norm in these files and in timm's batch norm, see from_torchvision.
_FROZEN_EPS, _EPS = 0.0, 1e-5

_BODY = "backbone.body."
_FPN = re.compile(r"^backbone\.fpn\.(inner|layer)_blocks\.(\d+)\.(?:(\d)\.)?(\w+)$")
_EXTRA = re.compile(r"^backbone\.fpn\.extra_blocks\.(p[67])\.")
_RPN_CONV = re.compile(r"^rpn\.head\.conv\.(?:(\d+)\.0\.)?(weight|bias)$")
_BOX_CONV = re.compile(r"^roi_heads\.box_head\.(\d)\.([01])\.(\w+)$")
_MASK_CONV = re.compile(r"^roi_heads\.mask_head\.(?:mask_fcn(\d)|(\d)\.([01]))\.(\w+)$")
_KEYPOINT_CONV = re.compile(r"^roi_heads\.keypoint_head\.(\d+)\.(\w+)$")
_SUBNET = re.compile(r"^head\.(classification|regression)_head\.conv\.(\d+)\.(?:([01])\.)?(\w+)$")

_RENAMED = {
    "rpn.head.cls_logits": "proposal_generator.rpn_head.objectness_logits",
    "rpn.head.bbox_pred": "proposal_generator.rpn_head.anchor_deltas",
    "roi_heads.box_head.fc6": "roi_heads.box_head.fc1",
    "roi_heads.box_head.fc7": "roi_heads.box_head.fc2",
    "roi_heads.box_head.5": "roi_heads.box_head.fc1",  # after four convolutions and Flatten
    "roi_heads.box_predictor.cls_score": "roi_heads.box_predictor.cls_score",
    "roi_heads.box_predictor.bbox_pred": "roi_heads.box_predictor.bbox_pred",
    "roi_heads.mask_predictor.conv5_mask": "roi_heads.mask_head.deconv",
    "roi_heads.mask_predictor.mask_fcn_logits": "roi_heads.mask_head.predictor",
    "roi_heads.keypoint_predictor.kps_score_lowres": "roi_heads.keypoint_head.score_lowres",
    "head.classification_head.cls_logits": "head.cls_score",
    "head.regression_head.bbox_reg": "head.bbox_pred",
}

_KINDS = (
    "Faster, Mask and Keypoint R-CNN and RetinaNet on a ResNet with FPN are read "
    "(fasterrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2, ...)"
)


def is_torchvision_detector(weights: StateDict) -> bool:
    """Whether a state dict has the names of one of torchvision's detectors."""
    return any(name.startswith(("rpn.head.", "head.classification_head.")) for name in weights)


def from_torchvision(weights: StateDict) -> StateDict:
    """Convert a detector of torchvision to the names and classes of this project's.

    The background becomes the last class. Of COCO's 91 outputs, those of the ten category ids that
    do not exist are dropped: they were never trained, and the classes are Detectron2's 80.

    Frozen batch norm (without ``num_batches_tracked``) computes with eps 0 in torchvision's
    pretrained models (``overwrite_eps`` in its ``fasterrcnn_resnet50_fpn``), and with 1e-5 here, so
    1e-5 is subtracted from its variances.
    """
    is_retinanet = "head.classification_head.cls_logits.weight" in weights
    if "backbone.body.conv1.weight" not in weights or not (
        is_retinanet or "roi_heads.box_predictor.cls_score.weight" in weights
    ):
        raise UserError(f"a detector of torchvision of another kind or backbone: {_KINDS}")
    converted, unknown = {}, []
    for name, tensor in weights.items():
        new_name = _new_name(name, weights, is_retinanet)
        if new_name is None:
            unknown.append(name)
        else:
            converted[new_name] = tensor
    if unknown:
        raise UserError(
            f"a detector of torchvision of another kind ({', '.join(unknown[:3])}): {_KINDS}"
        )
    _set_eps(converted)
    if is_retinanet:
        _select_retinanet_classes(converted)
    else:
        _select_rcnn_classes(converted)
    return converted


def _new_name(name: str, weights: StateDict, is_retinanet: bool) -> str | None:
    first = 3 if is_retinanet else 2  # of the FPN's levels
    if name.startswith(_BODY):
        return f"backbone.bottom_up.body.{name[len(_BODY) :]}"
    if found := _FPN.match(name):
        block, index, part, parameter = found.groups()
        kind = "lateral" if block == "inner" else "output"
        return f"backbone.fpn_{kind}{first + int(index)}.{_norm(part)}{parameter}"
    if found := _RPN_CONV.match(name):
        layer = f"conv{found[1]}." if "rpn.head.conv.1.0.weight" in weights else ""
        return f"proposal_generator.rpn_head.conv.{layer}{found[2]}"
    if found := _BOX_CONV.match(name):
        return f"roi_heads.box_head.conv{int(found[1]) + 1}.{_norm(found[2])}{found[3]}"
    if found := _MASK_CONV.match(name):
        number = int(found[1]) if found[1] else int(found[2]) + 1
        return f"roi_heads.mask_head.mask_fcn{number}.{_norm(found[3])}{found[4]}"
    if found := _KEYPOINT_CONV.match(name):
        return f"roi_heads.keypoint_head.conv_fcn{int(found[1]) // 2 + 1}.{found[2]}"
    if found := _SUBNET.match(name):
        return _subnet_name(
            *found.groups(), has_norm="head.regression_head.conv.0.1.weight" in weights
        )
    if _EXTRA.match(name):
        return _EXTRA.sub(r"backbone.top_block.\1.", name)
    module, _, parameter = name.rpartition(".")
    return f"{_RENAMED[module]}.{parameter}" if module in _RENAMED else None


def _norm(part: str | None) -> str:
    """Prefix of a parameter of ``Conv2dNormActivation``: 0 is the convolution, 1 its norm."""
    return "norm." if part == "1" else ""


def _subnet_name(head: str, index: str, part: str | None, parameter: str, has_norm: bool) -> str:
    subnet = "cls_subnet" if head == "classification" else "bbox_subnet"
    if part is None:  # names of older files count the ReLUs between the convolutions
        return f"head.{subnet}.{index}.{parameter}"
    per_block = 3 if has_norm else 2  # Detectron2: convolution, norm, ReLU
    return f"head.{subnet}.{per_block * int(index) + int(part)}.{parameter}"


def _set_eps(converted: StateDict) -> None:
    if any(name.endswith(".num_batches_tracked") for name in converted):
        return
    for name, tensor in converted.items():
        if name.startswith("backbone.bottom_up.") and name.endswith(".running_var"):
            converted[name] = tensor + _FROZEN_EPS - _EPS


def _foreground(num_outputs: int) -> List[int]:
    """Outputs that are classes, of those that begin with the background."""
    return COCO_IDS if num_outputs == NUM_COCO_OUTPUTS else list(range(1, num_outputs))


def _select(converted: StateDict, module: str, outputs: List[int], rows_each: int = 1) -> None:
    """Keep some outputs of a layer, in this order; each has ``rows_each`` rows of the weights."""
    for name in (f"{module}.weight", f"{module}.bias"):
        if name in converted:
            rows = converted[name]
            rows = rows.reshape(-1, rows_each, *rows.shape[1:])[outputs]
            converted[name] = rows.flatten(0, 1)


def _select_rcnn_classes(converted: StateDict) -> None:
    predictor = "roi_heads.box_predictor"
    foreground = _foreground(len(converted[f"{predictor}.cls_score.weight"]))
    _select(converted, f"{predictor}.cls_score", [*foreground, 0])
    _select(converted, f"{predictor}.bbox_pred", foreground, rows_each=4)
    _select(converted, "roi_heads.mask_head.predictor", foreground)


def _select_retinanet_classes(converted: StateDict) -> None:
    num_anchors = len(converted["head.bbox_pred.weight"]) // 4
    num_outputs = len(converted["head.cls_score.weight"]) // num_anchors
    foreground = _foreground(num_outputs)
    rows = [anchor * num_outputs + c for anchor in range(num_anchors) for c in foreground]
    _select(converted, "head.cls_score", rows)
    _add_zero_biases(converted)


def _add_zero_biases(converted: StateDict) -> None:
    """Detectron2's subnets have a bias before the norm as well, torchvision's do not."""
    added: Dict[str, torch.Tensor] = {}
    for name, tensor in converted.items():
        if "_subnet." in name and tensor.dim() == 4:
            bias = name.replace(".weight", ".bias")
            if bias not in converted:
                added[bias] = tensor.new_zeros(len(tensor))
    converted.update(added)


def torchvision_differences(model: nn.Module, weights: StateDict) -> List[str]:
    """Return the config lines without which a model differs from torchvision's."""
    lines = []
    generator = getattr(model, "anchor_generator", None)
    if rpn := getattr(model, "proposal_generator", None):
        generator = getattr(rpn, "anchor_generator", None)
    if generator is not None and not isinstance(generator, TorchvisionAnchorGenerator):
        lines.append("MODEL.ANCHOR_GENERATOR.NAME TorchvisionAnchorGenerator")
    if "head.cls_score.weight" in weights and hasattr(model, "head"):
        if not isinstance(model, TorchvisionRetinaNet):
            lines.append("MODEL.META_ARCHITECTURE TorchvisionRetinaNet")
        top_block = getattr(model.backbone, "top_block", None)
        p6 = weights.get("backbone.top_block.p6.weight")
        if isinstance(top_block, LastLevelP6P7) and p6 is not None:
            feature = "p5" if p6.shape[1] == p6.shape[0] else "res5"
            if top_block.in_feature != feature:
                lines.append(f"MODEL.RETINANET.P6_IN_FEATURE {feature}")
    heads = getattr(model, "roi_heads", None)
    if heads is not None:
        if not isinstance(heads, TorchvisionROIHeads):
            lines.append("MODEL.ROI_HEADS.NAME TorchvisionROIHeads")
        for part in ("box", "mask", "keypoint"):
            pooler = getattr(heads, f"{part}_pooler", None)
            if pooler is None:
                continue
            levels = pooler.level_poolers
            if any(getattr(p, "aligned", True) for p in levels):
                lines.append(f"MODEL.ROI_{part.upper()}_HEAD.POOLER_TYPE ROIAlign")
            if any(getattr(p, "sampling_ratio", 0) != 2 for p in levels):
                lines.append(f"MODEL.ROI_{part.upper()}_HEAD.POOLER_SAMPLING_RATIO 2")
    return lines


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
    is_torchvision_detector,
    from_torchvision,
    torchvision_differences,
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
