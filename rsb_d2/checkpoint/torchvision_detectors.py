"""torchvision's detectors: their names and classes to this project's.

Faster, Mask and Keypoint R-CNN and RetinaNet on a ResNet with FPN, of both versions
(``fasterrcnn_resnet50_fpn`` and ``fasterrcnn_resnet50_fpn_v2``, ...), with today's names and with
those of files from before torchvision 0.13.
"""

import re
from typing import Dict, List

import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from torch import nn

from ..errors import UserError
from ..modeling.torchvision_detectors import (
    TorchvisionAnchorGenerator,
    TorchvisionRetinaNet,
    TorchvisionROIHeads,
)
from .reading import StateDict

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
    """Whether a state dict has the names of one of torchvision's detectors.

    Args:
        weights (dict[str, Tensor]): as :func:`read_checkpoint` returns it.
    """
    return any(name.startswith(("rpn.head.", "head.classification_head.")) for name in weights)


def from_torchvision(weights: StateDict) -> StateDict:
    """Convert a detector of torchvision to the names and classes of this project's.

    The background becomes the last class. Of the 91 outputs of COCO, those of the ten category ids
    that do not exist are dropped: they were never trained, and the classes are Detectron2's 80.

    Batch norm that is frozen (it has no ``num_batches_tracked``) computes with eps 0 in
    torchvision's pretrained models (``overwrite_eps`` in its ``fasterrcnn_resnet50_fpn``), and with
    1e-5 here, so that 1e-5 is subtracted from its variances.

    Args:
        weights (dict[str, Tensor]): of any number of classes.

    Returns:
        dict[str, Tensor]: by the names of this project's detectors.

    Raises:
        UserError: if it is another detector, or on another backbone than a ResNet.
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
    """Keep some outputs of a layer, in this order.

    Args:
        converted (dict[str, Tensor]): changed in place.
        module (str): name of the layer, with weights of shape (outputs * rows_each, ...).
        outputs (list[int]): indices.
        rows_each (int): rows of the weights that belong to one output.
    """
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


def differences(model: nn.Module, weights: StateDict) -> List[str]:
    """Config lines without which a model computes something else than torchvision's.

    Args:
        model (nn.Module): a detector.
        weights (dict[str, Tensor]): as :func:`from_torchvision` returns it.

    Returns:
        list[str]: lines to write; none for the configs of torchvision's models.
    """
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
