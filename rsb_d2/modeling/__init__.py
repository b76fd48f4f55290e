from .build import (
    CheckedTimmBackbone,
    TimmRes5ROIHeads,
    build_timm_backbone,
    build_timm_c4_backbone,
    build_timm_fpn_backbone,
    build_timm_retinanet_fpn_backbone,
)
from .published import (
    OpenMMLabCascadeROIHeads,
    OpenMMLabRetinaNet,
    TorchvisionAnchorGenerator,
    TorchvisionRetinaNet,
    TorchvisionROIHeads,
)
from .spec import check_pixel_format
from .timm_backbone import TimmBackbone, TimmLastStage

__all__ = [
    "CheckedTimmBackbone",
    "OpenMMLabCascadeROIHeads",
    "OpenMMLabRetinaNet",
    "TimmBackbone",
    "TimmLastStage",
    "TimmRes5ROIHeads",
    "TorchvisionAnchorGenerator",
    "TorchvisionROIHeads",
    "TorchvisionRetinaNet",
    "build_timm_backbone",
    "build_timm_c4_backbone",
    "build_timm_fpn_backbone",
    "build_timm_retinanet_fpn_backbone",
    "check_pixel_format",
]
