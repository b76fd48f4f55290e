from .checkpointer import Checkpointer
from .formats import BACKBONE, DETECTOR, FORMATS, Format
from .locating import locate
from .timm_hub import check_architecture

__all__ = [
    "BACKBONE",
    "DETECTOR",
    "FORMATS",
    "Checkpointer",
    "Format",
    "check_architecture",
    "locate",
]
