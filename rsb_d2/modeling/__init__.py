from .build import (
    build_timm_backbone,
    build_timm_fpn_backbone,
    build_timm_retinanet_fpn_backbone,
    check_pixel_format,
)
from .cascade_rcnn import OpenMMLabCascadeROIHeads
from .classifier import ImageClassifier, is_classifier
from .retinanet import OpenMMLabRetinaNet
from .timm_backbone import TimmBackbone

__all__ = [
    "ImageClassifier",
    "OpenMMLabCascadeROIHeads",
    "OpenMMLabRetinaNet",
    "TimmBackbone",
    "build_timm_backbone",
    "build_timm_fpn_backbone",
    "build_timm_retinanet_fpn_backbone",
    "check_pixel_format",
    "is_classifier",
]
