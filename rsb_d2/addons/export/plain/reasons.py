"""Why a detector is none that Detectron2 can build by itself."""

from typing import Iterator

from detectron2.config import CfgNode
from torch import nn

from ....errors import UserError
from ....modeling import OpenMMLabCascadeROIHeads, OpenMMLabRetinaNet
from ....modeling.openmmlab import LastLevelP6P7WithoutReLU
from ....modeling.resnets.shape import PLAIN_RESNETS
from ....modeling.resnets.spec import (
    FPN,
    RETINANET_FPN,
    backbone_spec,
    is_timm_backbone,
)
from ....pretraining.classifier import ImageClassifier
from ....registration import backbone_name

# Ours to Detectron2's, which put the same FPN on a ResNet.
BACKBONES = {
    FPN: "build_resnet_fpn_backbone",
    RETINANET_FPN: "build_retinanet_resnet_fpn_backbone",
}

_OF_STOCK_MODELS = ("detectron2.", "torch.", "fvcore.")


def check_is_plain(cfg: CfgNode, model: nn.Module) -> None:
    """Check that stock code of Detectron2 computes what a detector does.

    Args:
        cfg (CfgNode): of the model.
        model (nn.Module): the detector.

    Raises:
        UserError: with the first reason why it does not.
    """
    for reason in _reasons(cfg, model):
        raise UserError(f"--format detectron2: {reason}")


def _reasons(cfg: CfgNode, model: nn.Module) -> Iterator[str]:
    name = cfg.MODEL.BACKBONE.NAME
    if type(model) is ImageClassifier:
        yield "Detectron2 has no image classifiers; tools/convert_weights.py writes its backbone"
    if not is_timm_backbone(cfg):
        yield (
            f"MODEL.BACKBONE.NAME {name} is not of this project: its config.yaml and weights are "
            "for Detectron2 as they are"
        )
    timm_name = backbone_spec(cfg).name
    if timm_name.partition(".")[0] not in PLAIN_RESNETS:
        yield (
            f"Detectron2 has no backbone like timm's {timm_name}, only {', '.join(PLAIN_RESNETS)}"
        )
    if backbone_name(cfg) not in BACKBONES:
        yield (
            f"MODEL.BACKBONE.NAME {name} pads images to a multiple of its stride, and Detectron2's "
            f"ResNet without an FPN does not; {' and '.join(BACKBONES)} can be exported"
        )
    yield from _reasons_of_pyramid(cfg, model)
    if type(model) is OpenMMLabRetinaNet:
        yield (
            "MODEL.META_ARCHITECTURE OpenMMLabRetinaNet clips boxes to the image before NMS, "
            "Detectron2's RetinaNet afterwards"
        )
    if isinstance(getattr(model, "roi_heads", None), OpenMMLabCascadeROIHeads):
        yield (
            "MODEL.ROI_HEADS.NAME OpenMMLabCascadeROIHeads averages the logits of its stages, "
            "Detectron2's CascadeROIHeads their probabilities, and it has a mask head for each "
            "stage, Detectron2's one"
        )
    yield from _foreign_parts(model)


def _reasons_of_pyramid(cfg: CfgNode, model: nn.Module) -> Iterator[str]:
    levels = list(cfg.MODEL.FPN.IN_FEATURES)
    if "stem" in levels:
        yield (
            "MODEL.FPN.IN_FEATURES has stem, which is at stride 2 here and in Detectron2's ResNet "
            "at stride 4"
        )
    top_block = getattr(model.backbone, "top_block", None)
    if isinstance(top_block, LastLevelP6P7WithoutReLU):
        yield (
            "MODEL.RETINANET.P7_RELU is False, as in the published RetinaNet: Detectron2's has a "
            "ReLU between P6 and P7"
        )
    if backbone_name(cfg) == RETINANET_FPN and levels[-1] != "res5":
        yield f"Detectron2 makes P6 and P7 of res5, and MODEL.FPN.IN_FEATURES ends in {levels[-1]}"


def _foreign_parts(model: nn.Module) -> Iterator[str]:
    """Modules beside the backbone whose code a process with Detectron2 alone does not have."""
    for name, module in model.named_modules():
        is_stock = f"{type(module).__module__}.".startswith(_OF_STOCK_MODELS)
        if not is_stock and not name.startswith("backbone.bottom_up"):
            yield f"{type(module).__name__} ({name or 'the model'}) is no part of Detectron2"
