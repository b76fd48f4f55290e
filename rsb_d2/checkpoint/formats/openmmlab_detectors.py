"""The published detectors: OpenMMLab's names to this project's, of MMDetection 2 and 3.

Nothing is computed but one order of rows: MMDetection has the 9 anchors of a RetinaNet's cell
ordered by ratio and then by size, Detectron2 by size and then by ratio.
"""

import re
from typing import List

import torch
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.roi_heads import CascadeROIHeads
from torch import nn

from ...errors import UserError
from ...modeling.openmmlab import (
    LastLevelP6P7WithoutReLU,
    OpenMMLabCascadeROIHeads,
    OpenMMLabRetinaNet,
)
from ..reading import StateDict

# neck.lateral_convs.0 of the two-stage detectors is of res2, of RetinaNet of res3.
_FIRST_LEVEL = {"rcnn": 2, "retinanet": 3}
_NUM_LATERAL = {"rcnn": 4, "retinanet": 3}

_RULES = (
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
            converted[new_name] = _sizes_first(tensor, _num_anchors(weights))
        else:
            converted[new_name] = tensor
    if unknown:
        raise _not_known(unknown)
    return converted


def differences(model: nn.Module, weights: StateDict) -> List[str]:
    """What a model computes otherwise than MMDetection did with the same weights.

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
    for pattern, replacement in _RULES:
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


def _num_anchors(weights: StateDict) -> int:
    return len(weights["bbox_head.retina_reg.bias"]) // _DELTAS


def _sizes_first(rows: torch.Tensor, num_anchors: int) -> torch.Tensor:
    """Reorder rows of shape (ratios * sizes * K, ...) to (sizes * ratios * K, ...)."""
    by_anchor = rows.reshape(num_anchors // _RETINANET_SIZES, _RETINANET_SIZES, -1, *rows.shape[1:])
    return by_anchor.transpose(0, 1).reshape(rows.shape)


def _not_known(names: List[str]) -> UserError:
    return UserError(
        f"a detector of OpenMMLab of another kind ({', '.join(names[:3])}): its Faster, Mask and "
        "Cascade R-CNN and RetinaNet on a ResNet with FPN are read"
    )
