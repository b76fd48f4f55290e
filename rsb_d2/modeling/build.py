"""The registered builders of backbones, the ROI heads of C4, and the backbone of LazyConfigs."""

import logging
import weakref
from typing import Any, Dict, List, Sequence, Tuple

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, ROI_HEADS_REGISTRY
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.roi_heads import Res5ROIHeads
from torch import nn

from ..config.defaults import check_has_keys
from ..errors import UserError, first
from ..registration import register
from .published import LastLevelP6P7WithoutReLU
from .spec import (
    backbone_spec,
    check_pixel_format,
    has_default_pixels,
    name_of_weights,
    pixel_statistics,
    pixels_fit,
    rounded,
)
from .timm_backbone import TimmBackbone, TimmLastStage, check_model_name

logger = logging.getLogger(__name__)


@register(BACKBONE_REGISTRY, waits=True)  # Detic has one of this name
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> TimmBackbone:
    """Build the plain timm backbone that a config describes: :func:`.spec.backbone_spec`.

    Only keys of the backbone are read; :func:`rsb_d2.config.validate` checks those of the heads.

    Args:
        cfg (CfgNode): a config with the keys of :func:`rsb_d2.add_rsb_config`; not changed.
        input_shape (ShapeSpec or None): of the images; only ``channels`` counts. ``None``: as many
            as ``MODEL.PIXEL_MEAN`` has values.

    Raises:
        UserError: if the config lacks keys of :func:`rsb_d2.add_rsb_config`, if the model is
            unknown or lacks a feature, if keys contradict each other or cannot be translated for
            timm, or if the image format is neither that of the model nor Detectron2's default,
            which only causes a warning.
    """
    check_has_keys(cfg)
    spec = backbone_spec(cfg)
    channels = input_shape.channels if input_shape else len(cfg.MODEL.PIXEL_MEAN)
    backbone = TimmBackbone(**spec._asdict(), in_channels=channels)
    name = name_of_weights(cfg.MODEL.WEIGHTS, spec.name)
    if not has_default_pixels(cfg):
        check_pixel_format(cfg, name)
    elif not pixels_fit(name, cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD):
        logger.warning(
            "INPUT.FORMAT, MODEL.PIXEL_MEAN and MODEL.PIXEL_STD have Detectron2's defaults, for "
            f"which timm's weights of {name} were not trained."
        )
    return backbone


@register(BACKBONE_REGISTRY)
def build_timm_c4_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> TimmBackbone:
    """Build a timm backbone up to res4, for ROI heads that contain res5.

    Arguments and errors as :func:`build_timm_backbone`.
    """
    return build_timm_backbone(cfg, input_shape)


def _build_fpn(cfg: CfgNode, bottom_up: TimmBackbone, top_block: nn.Module) -> FPN:
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@register(BACKBONE_REGISTRY)
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> FPN:
    """Build the stock FPN on a timm backbone: p2 ... p5 and p6, p5 max-pooled, as in Faster R-CNN.

    Arguments and errors as :func:`build_timm_backbone`.
    """
    return _build_fpn(cfg, build_timm_backbone(cfg, input_shape), LastLevelMaxPool())


@register(BACKBONE_REGISTRY)
def build_timm_retinanet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> FPN:
    """Build the stock FPN on a timm backbone: p3 ... p5, and p6, p7 from res5, as in RetinaNet.

    ``MODEL.RETINANET.P7_RELU`` puts a ReLU between p6 and p7; ``MODEL.RETINANET.P6_IN_FEATURE`` is
    the feature that p6 is computed from. Arguments and errors as :func:`build_timm_backbone`.
    """
    bottom_up = build_timm_backbone(cfg, input_shape)
    shapes = bottom_up.output_shape()
    deepest = cfg.MODEL.FPN.IN_FEATURES[-1]
    source = cfg.MODEL.RETINANET.P6_IN_FEATURE or deepest
    if source not in (deepest, "p5"):
        raise UserError(
            f"MODEL.RETINANET.P6_IN_FEATURE is {source!r}: write {deepest!r}, the deepest of "
            "MODEL.FPN.IN_FEATURES, or 'p5'"
        )
    top_block_type = LastLevelP6P7 if cfg.MODEL.RETINANET.P7_RELU else LastLevelP6P7WithoutReLU
    channels = shapes[source].channels if source in shapes else cfg.MODEL.FPN.OUT_CHANNELS
    top_block = top_block_type(channels, cfg.MODEL.FPN.OUT_CHANNELS, in_feature=source)
    return _build_fpn(cfg, bottom_up, top_block)


@register(ROI_HEADS_REGISTRY)
class TimmRes5ROIHeads(Res5ROIHeads):
    """The stock ``Res5ROIHeads``, whose res5 is the last stage of the timm backbone.

    Norm policy and freezing are those of the backbone: ``BACKBONE.FREEZE_AT`` 5 freezes res5, too.
    """

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> Tuple[nn.Module, int]:
        spec = backbone_spec(cfg)
        stage = TimmLastStage(spec.name, spec.norm, spec.norm_eval, freeze=spec.freeze_at >= 5)
        return stage, stage.out_channels


class CheckedTimmBackbone(TimmBackbone):
    """A :class:`TimmBackbone` for Detectron2's ``tools/lazyconfig_train_net.py``.

    There is no builder to check its config, so the constructor compares the image format with that
    of the weights. Each of its tensors, and no others below its name, must be in a checkpoint, even
    for the stock ``DetectionCheckpointer``, which only logs tensors that do not fit.
    """

    _alive: "weakref.WeakSet[CheckedTimmBackbone]" = weakref.WeakSet()

    def __init__(
        self,
        name: str,
        *,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str,
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        norm: str = "BN",
        norm_eval: bool = True,
        freeze_at: int = 0,
    ):
        """
        Args:
            name (str): as for :class:`TimmBackbone`; with the tag of the weights, as weights of
                one architecture may expect different image statistics.
            pixel_mean, pixel_std (sequence of float): of the meta architecture.
            input_format (str): of the images.
            out_features, norm, norm_eval, freeze_at: as for :class:`TimmBackbone`.

        Raises:
            UserError: as :class:`TimmBackbone`, and if the model expects other images.
        """
        check_model_name(name)
        if not pixels_fit(name, input_format, pixel_mean, pixel_std):
            mean, std = pixel_statistics(name)
            raise UserError(
                f"input_format {input_format}, pixel_mean {list(pixel_mean)} and pixel_std "
                f"{list(pixel_std)} do not fit timm's {name}; write model.input_format="
                f"RGB model.pixel_mean={_without_spaces(mean)} "
                f"model.pixel_std={_without_spaces(std)}"
            )
        super().__init__(name, out_features, norm, norm_eval, freeze_at)
        self._alive.add(self)

    @classmethod
    def names_in_use(cls) -> List[str]:
        """timm's names of the existing backbones of this process."""
        return sorted(backbone.name for backbone in cls._alive)

    def _load_from_state_dict(self, state_dict: Dict[str, Any], prefix: str, *args) -> None:
        wanted = {f"{prefix}{name}" for name in self.state_dict()}
        given = {name for name in state_dict if name.startswith(prefix)}
        missing = sorted(n for n in wanted - given if not n.endswith("num_batches_tracked"))
        foreign = sorted(given - wanted)
        if missing or foreign:
            raise UserError(
                f"the weights do not fit the backbone, timm's {self.name}: {len(missing)} of its "
                f"{len(wanted)} tensors are missing or have another shape "
                f"({first(missing, 3) or 'none'}), and {len(foreign)} are not of it "
                f"({first(foreign, 3) or 'none'}). Take timm://{self.name}, or a checkpoint of "
                "this model"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


def _without_spaces(values: List[float]) -> str:
    return str(rounded(values)).replace(" ", "")
