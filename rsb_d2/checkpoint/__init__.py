from .checkpointer import Checkpointer
from .formats.known_formats import BACKBONE, DETECTOR, FORMATS, Format
from .locating import locate
from .run_folder import (
    files_of_run,
    find_newest_complete,
    has_run,
    has_weights,
    remove_leftovers,
    remove_old_checkpoints,
    set_aside,
)
from .timm_hub import check_architecture

__all__ = [
    "BACKBONE",
    "DETECTOR",
    "FORMATS",
    "Checkpointer",
    "Format",
    "check_architecture",
    "files_of_run",
    "find_newest_complete",
    "has_run",
    "has_weights",
    "locate",
    "remove_leftovers",
    "remove_old_checkpoints",
    "set_aside",
]
