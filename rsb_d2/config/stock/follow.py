"""A stock YAML with the name of a timm backbone in it: what follows from Detectron2's keys."""

import logging
from collections.abc import Collection
from typing import Any, Dict, List, Set

from detectron2.config import CfgNode
from detectron2.modeling import ROI_HEADS_REGISTRY

from ...modeling.build import has_default_pixels, name_of_weights, pixel_statistics
from ...modeling.resnets.spec import (
    C4,
    C4_HEADS,
    BackboneSpec,
    backbone_spec,
    check_heads,
    is_c4,
    is_timm_backbone,
    stride_in_1x1_message,
)
from ...registration import backbone_name, reachable_name, roi_heads_name

logger = logging.getLogger(__name__)


def follow_stock_keys(cfg: CfgNode, said: Collection[str] = ()) -> None:
    """Write what follows from Detectron2's keys for a timm backbone into the others, and say so.

    ``MODEL.TIMM`` follows from ``MODEL.RESNETS`` where it is not set, the ROI heads of C4 take
    timm's res5, and images in the format of Detectron2's own weights are fed in that of timm's.
    Images in any other wrong format are in doubt: the builder asks for the lines to write.

    Args:
        cfg (CfgNode): not frozen; changed only if its ``BACKBONE.NAME`` is one of this project's.
        said (collection of str): as of :func:`rsb_d2.modeling.resnets.spec.backbone_spec`.

    Raises:
        UserError: as :func:`rsb_d2.modeling.resnets.spec.backbone_spec` and ``check_heads``.
    """
    if not is_timm_backbone(cfg):
        return
    if backbone_name(cfg) == C4 and is_c4(cfg) and roi_heads_name(cfg) != C4_HEADS:
        name = cfg.MODEL.ROI_HEADS.NAME = reachable_name(ROI_HEADS_REGISTRY, C4_HEADS)
        logger.info(f"MODEL.ROI_HEADS.NAME is {name}: res5 is timm's.")
    check_heads(cfg)
    spec = backbone_spec(cfg, said)
    if not cfg.MODEL.TIMM.NAME:
        logger.info(
            f"The backbone is what MODEL.RESNETS describes: timm's {spec.name}, norm {spec.norm}."
        )
        if cfg.MODEL.RESNETS.STRIDE_IN_1X1:
            logger.info(stride_in_1x1_message(spec.name))
    write_spec(cfg, spec)
    if has_default_pixels(cfg):
        set_pixels(cfg)


def said_of_resnets(layers: List[Dict[str, Any]], on_command_line: List[str]) -> Set[str]:
    """The keys of ``MODEL.RESNETS`` that somebody wrote about a ResNet of Detectron2's.

    A file in which ``MODEL.TIMM.NAME`` stands, too, may be one that a run has written, with all
    keys at whatever value.

    Args:
        layers (list[dict]): what stands in a file, and in its bases.
        on_command_line (list[str]): keys.
    """
    prefix = "MODEL.RESNETS."
    said = {key[len(prefix) :] for key in on_command_line if key.startswith(prefix)}
    for layer in layers:
        model = layer.get("MODEL") or {}
        if "NAME" not in (model.get("TIMM") or {}):
            said |= set(model.get("RESNETS") or {})
    return said


def write_spec(cfg: CfgNode, spec: BackboneSpec) -> None:
    """Say in ``MODEL.TIMM`` what the backbone is, wherever it was said before."""
    cfg.MODEL.TIMM.NAME = spec.name
    cfg.MODEL.TIMM.OUT_FEATURES = list(spec.out_features)
    cfg.MODEL.TIMM.NORM = spec.norm
    cfg.MODEL.TIMM.NORM_EVAL = spec.norm_eval


def set_pixels(cfg: CfgNode) -> None:
    """Feed the images in the format of timm's model; with a message if it was another one.

    Args:
        cfg (CfgNode): with ``MODEL.TIMM.NAME``; changed in place.
    """
    name = name_of_weights(cfg.MODEL.WEIGHTS, cfg.MODEL.TIMM.NAME)
    before = cfg.INPUT.FORMAT, list(cfg.MODEL.PIXEL_MEAN), list(cfg.MODEL.PIXEL_STD)
    mean, std = ([round(x, 3) for x in values] for values in pixel_statistics(name))
    cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = "RGB", mean, std
    if before != ("RGB", mean, std):
        logger.warning(
            f"The images are fed as timm's {name} takes them, INPUT.FORMAT RGB, MODEL.PIXEL_MEAN "
            f"{mean} and PIXEL_STD {std}; in the config they were {before[0]}, {before[1]} and "
            f"{before[2]}."
        )
