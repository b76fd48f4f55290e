from .checkpointer import Checkpointer
from .formats.known_formats import BACKBONE, DETECTOR, FORMATS, Format
from .locating import locate
from .run_folder import (
    find_newest_complete,
    has_run,
    remove_leftovers,
    remove_old_checkpoints,
)
from .timm_hub import check_architecture

__all__ = [
    "BACKBONE",
    "DETECTOR",
    "FORMATS",
    "Checkpointer",
    "Format",
    "check_architecture",
    "find_newest_complete",
    "has_run",
    "locate",
    "remove_leftovers",
    "remove_old_checkpoints",
]
