"""A stock YAML with the name of a timm backbone in it: the keys that follow from Detectron2's."""

import logging
from collections.abc import Collection

from detectron2.config import CfgNode
from detectron2.modeling import ROI_HEADS_REGISTRY

from ..modeling.build import has_default_pixels, name_of_weights, pixel_statistics
from ..modeling.spec import (
    C4,
    C4_HEADS,
    BackboneSpec,
    backbone_spec,
    check_heads,
    is_c4,
    is_timm_backbone,
    stride_in_1x1_message,
)
from ..registration import backbone_name, reachable_name, roi_heads_name

logger = logging.getLogger(__name__)


def resolve_stock_keys(cfg: CfgNode, explicit_keys: Collection[str] = ()) -> None:
    """Fill in the keys of a timm backbone that follow from Detectron2's.

    ``MODEL.TIMM`` follows from ``MODEL.RESNETS`` where it is not set, the ROI heads of C4 take
    timm's res5, and images in the format of Detectron2's own weights are fed in that of timm's.
    Images in another format are left as they are; the builder refuses a wrong one.

    Args:
        cfg (CfgNode): not frozen; changed only if its ``BACKBONE.NAME`` is one of this project's.
        explicit_keys (collection of str): see
            :func:`rsb_d2.modeling.spec.backbone_spec`.

    Raises:
        UserError: see :func:`rsb_d2.modeling.spec.backbone_spec` and ``check_heads``.
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
    """Set the format and the statistics of the images to those of timm's weights.

    Args:
        cfg (CfgNode): with ``MODEL.TIMM.NAME``; changed in place.
    """
    name = name_of_weights(cfg.MODEL.WEIGHTS, cfg.MODEL.TIMM.NAME)
    mean, std = ([round(x, 3) for x in values] for values in pixel_statistics(name))
    cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = "RGB", mean, std
