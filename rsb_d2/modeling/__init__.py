from .build import (
    CheckedTimmBackbone,
    build_timm_backbone,
    build_timm_c4_backbone,
    build_timm_fpn_backbone,
    build_timm_retinanet_fpn_backbone,
    check_pixel_format,
)
from .last_stage import TimmLastStage, TimmRes5ROIHeads
from .openmmlab import OpenMMLabCascadeROIHeads, OpenMMLabRetinaNet
from .timm_backbone import TimmBackbone
from .torchvision_detectors import (
    TorchvisionAnchorGenerator,
    TorchvisionRetinaNet,
    TorchvisionROIHeads,
)

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
