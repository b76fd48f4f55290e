"""An RSB backbone under any of Detectron2's configs, in one line."""

import logging

from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, ROI_HEADS_REGISTRY

from ..checkpoint import check_architecture
from ..checkpoint.sources import has_modern_recipe, is_stock_weights, recommended_weights
from ..config import add_rsb_config
from ..config.nodes import Changes
from ..errors import UserError
from ..modeling.build import check_pixel_format, name_of_weights
from ..modeling.spec import (
    BUILDERS,
    C4,
    C4_HEADS,
    FPN,
    PLAIN,
    RETINANET_FPN,
    backbone_spec,
    check_heads,
    is_c4,
    set_pixels,
    stride_in_1x1_message,
    write_spec,
)
from ..registration import backbone_name, reachable_name
from ..solver.build import optimizer_name, rate_by_rule

logger = logging.getLogger(__name__)

_BUILDERS = {
    "build_resnet_backbone": PLAIN,
    "build_resnet_fpn_backbone": FPN,
    "build_retinanet_resnet_fpn_backbone": RETINANET_FPN,
}


_DECAY = 0.05  # of the published recipe (OpenMMLab's configs/resnet_strikes_back)


def with_rsb_backbone(cfg: CfgNode, weights: str = "", recipe: bool = True) -> CfgNode:
    """Put timm's ResNet with "ResNet strikes back" weights under a config of Detectron2.

    The model stays that of the config: depth, groups, width, dilation, norm, freezing and features
    of ``MODEL.RESNETS`` are carried over to timm, or refused. The pixel statistics, RGB, and
    the stride in the 3x3 convolutions follow the weights, with a message.

    Args:
        cfg (CfgNode): of ``detectron2.model_zoo.get_config`` or anybody's, not frozen; changed in
            place. The keys of :func:`rsb_d2.add_rsb_config` are added if they are missing.
        weights (str): start of the backbone, as in ``MODEL.WEIGHTS``. ``""``: RSB's A1
            where the config has weights of Detectron2, or none below a frozen stem; its own
            otherwise, and none where it trains from scratch (``FREEZE_AT`` 0).
        recipe (bool): replace SGD by the published recipe of weights that train badly with it
            (:func:`rsb_d2.checkpoint.sources.has_modern_recipe`): AdamW, weight decay 0.05 but none
            on norms, and a rate of 0.0002 for 16 images (RetinaNet 0.0001), in proportion to
            ``SOLVER.IMS_PER_BATCH``. Train with :class:`rsb_d2.Trainer` then: ``DefaultTrainer``
            has no AdamW. ``False``: the config's own solver.

    Returns:
        CfgNode: ``cfg`` itself.

    Raises:
        UserError: if a key cannot be carried over to timm, or the weights are of another model.
            The config may be changed in part then.

    Example::

        from detectron2 import model_zoo
        from rsb_d2.model_zoo import with_rsb_backbone
        cfg = with_rsb_backbone(model_zoo.get_config("COCO-Detection/faster_rcnn_R_50_C4_1x.yaml"))
    """
    if cfg.is_frozen():
        raise UserError("with_rsb_backbone changes the config, which is frozen; give cfg.clone()")
    add_rsb_config(cfg)
    changes = Changes(cfg)
    with changes.because("the network is timm's"):
        _put_under(cfg, weights)
    if recipe and optimizer_name(cfg) == "SGD" and has_modern_recipe(cfg.MODEL.WEIGHTS):
        with changes.because("the recipe of these weights; train with rsb_d2.Trainer"):
            _set_recipe(cfg)
    changes.log()
    return cfg


def _set_recipe(cfg: CfgNode) -> None:
    cfg.SOLVER.OPTIMIZER = "AdamW"
    cfg.SOLVER.BASE_LR = rate_by_rule(cfg)
    cfg.SOLVER.WEIGHT_DECAY = _DECAY
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0
    cfg.SOLVER.WEIGHT_DECAY_BIAS = None


def _put_under(cfg: CfgNode, weights: str) -> None:
    builder = backbone_name(cfg)
    if builder not in BUILDERS:
        if builder not in _BUILDERS:
            raise UserError(
                f"MODEL.BACKBONE.NAME: {cfg.MODEL.BACKBONE.NAME} has no counterpart on a timm "
                f"backbone; there is one for {', '.join(_BUILDERS)}"
            )
        builder = C4 if is_c4(cfg) and _BUILDERS[builder] == PLAIN else _BUILDERS[builder]
        cfg.MODEL.BACKBONE.NAME = reachable_name(BACKBONE_REGISTRY, builder)
    if builder == C4 and is_c4(cfg):
        cfg.MODEL.ROI_HEADS.NAME = reachable_name(ROI_HEADS_REGISTRY, C4_HEADS)
    check_heads(cfg)
    spec = backbone_spec(cfg)
    write_spec(cfg, spec)
    if cfg.MODEL.RESNETS.STRIDE_IN_1X1:
        logger.info(stride_in_1x1_message(spec.name))
        cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.WEIGHTS = weights or _weights(cfg)
    check_architecture(cfg.MODEL.WEIGHTS, spec.name)
    if len(cfg.MODEL.PIXEL_MEAN) != 3:
        check_pixel_format(cfg, name_of_weights(cfg.MODEL.WEIGHTS, spec.name))
    set_pixels(cfg)


def _weights(cfg: CfgNode) -> str:
    given, name = cfg.MODEL.WEIGHTS, cfg.MODEL.TIMM.NAME
    if given and not is_stock_weights(given):
        return given
    if not given and cfg.MODEL.BACKBONE.FREEZE_AT == 0:
        logger.info("MODEL.WEIGHTS is empty and nothing is frozen: the training is from scratch.")
        return ""
    weights, is_rsb = recommended_weights(name)
    if not weights:
        raise UserError(f"MODEL.WEIGHTS: timm has no weights of {name}; name a file of them")
    if not is_rsb:
        logger.warning(
            f'timm has no "ResNet strikes back" weights of {name}: MODEL.WEIGHTS is {weights}.'
        )
    if given and "ImageNetPretrained/" not in given:
        logger.warning(
            f"MODEL.WEIGHTS was {given}, a detector on Detectron2's own ResNet; the training "
            f"starts from {weights} instead, and from random heads."
        )
    return weights
