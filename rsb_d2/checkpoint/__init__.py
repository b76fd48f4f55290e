from .checkpointer import Checkpointer
from .formats import BACKBONE, DETECTOR, FORMATS, Format
from .run_folder import (
    files_of_run,
    find_newest_complete,
    has_run,
    has_weights,
    remove_leftovers,
    remove_old_checkpoints,
    set_aside,
)
from .sources import check_architecture, locate

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
