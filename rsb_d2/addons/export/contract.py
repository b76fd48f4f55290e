"""What an exported file says of itself: its input, its outputs and its classes."""

import json
from typing import Dict, Tuple

import detectron2
import torch
from detectron2.config import CfgNode

from ...data.class_names import ClassNames
from ...errors import UserError

# Shorter sides are not tested.
MIN_SIDE = 32


def input_contract(
    cfg: CfgNode, classes: ClassNames, size: Tuple[int, int] | None = None
) -> Dict[str, str]:
    """The metadata of an exported file.

    Args:
        cfg (CfgNode): of the model.
        classes (ClassNames): of the model.
        size (tuple[int, int] or None): height and width, of a file that takes no others.

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
        **(_free_size(cfg) if size is None else _fixed_size(cfg, size)),
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


def pad_color(cfg: CfgNode) -> Tuple[int, ...]:
    """The color that normalising makes nearly 0, which is what Detectron2 pads with.

    Args:
        cfg (CfgNode): of the model.

    Returns:
        tuple[int, ...]: in 0 ... 255, channels as in ``INPUT.FORMAT``.
    """
    return tuple(min(max(round(mean), 0), 255) for mean in cfg.MODEL.PIXEL_MEAN)


def _free_size(cfg: CfgNode) -> Dict[str, str]:
    return {
        "input_min_side": str(MIN_SIDE),
        "resize_short_side": str(cfg.INPUT.MIN_SIZE_TEST),
        "resize_long_side_max": str(cfg.INPUT.MAX_SIZE_TEST),
    }


def _fixed_size(cfg: CfgNode, size: Tuple[int, int]) -> Dict[str, str]:
    return {
        "input_height": str(size[0]),
        "input_width": str(size[1]),
        "pad_color": json.dumps(pad_color(cfg)),
    }


def score_threshold(cfg: CfgNode) -> float:
    """The lowest score of a detection, of the kind of model that a config has."""
    node = cfg.MODEL.RETINANET if _is_retinanet(cfg) else cfg.MODEL.ROI_HEADS
    return float(node.SCORE_THRESH_TEST)


def _is_retinanet(cfg: CfgNode) -> bool:
    return "RetinaNet" in cfg.MODEL.META_ARCHITECTURE
