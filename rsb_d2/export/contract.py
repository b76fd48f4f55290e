"""What an exported file says of itself: its input, its outputs and its classes."""

import json
from typing import Dict

import detectron2
import torch
from detectron2.config import CfgNode

from ..data.class_names import ClassNames
from ..errors import UserError

# Shorter sides are not tested.
MIN_SIDE = 32


def input_contract(cfg: CfgNode, classes: ClassNames) -> Dict[str, str]:
    """The metadata of an exported file.

    Args:
        cfg (CfgNode): of the model.
        classes (ClassNames): of the model.

    Returns:
        dict[str, str]: as ``docs/deployment.md`` describes it.

    Raises:
        UserError: if the model does not take images of three channels.
    """
    if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
        raise UserError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT}; only RGB and BGR can be exported")
    contract = {
        "input_layout": "height, width, channel",
        "input_dtype": "uint8",
        "input_channels": cfg.INPUT.FORMAT,
        "input_normalization": "inside the model",
        "input_min_side": str(MIN_SIDE),
        "resize_short_side": str(cfg.INPUT.MIN_SIZE_TEST),
        "resize_long_side_max": str(cfg.INPUT.MAX_SIZE_TEST),
        "resize_filter": "bilinear, as of Pillow, before the model",
        "boxes": "x0, y0, x1, y1 in pixels of the input",
        "classes": "index into class_names",
        "class_names": json.dumps(classes.names, ensure_ascii=False),
        "class_ids": json.dumps(classes.ids),
        "score_threshold": repr(score_threshold(cfg)),
        "max_detections": str(cfg.TEST.DETECTIONS_PER_IMAGE),
        "architecture": cfg.MODEL.META_ARCHITECTURE,
        "made_by": f"rsb_d2, Detectron2 {detectron2.__version__}, torch {torch.__version__}",
    }
    if cfg.MODEL.MASK_ON and not _is_retinanet(cfg):
        contract["masks"] = "probabilities in the box, to be pasted; see docs/deployment.md"
    return contract


def score_threshold(cfg: CfgNode) -> float:
    """The lowest score of a detection, of the kind of model that a config has."""
    node = cfg.MODEL.RETINANET if _is_retinanet(cfg) else cfg.MODEL.ROI_HEADS
    return float(node.SCORE_THRESH_TEST)


def _is_retinanet(cfg: CfgNode) -> bool:
    return "RetinaNet" in cfg.MODEL.META_ARCHITECTURE
