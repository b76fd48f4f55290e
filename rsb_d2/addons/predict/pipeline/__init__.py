"""Prediction of any number of images: reading, the model, and writing, overlapped."""

from .processes import Processes, join_processes
from .run import Options, predict_files
from .settings import settings_of
from .summary import Summary, format_table

__all__ = [
    "Options",
    "Processes",
    "Summary",
    "format_table",
    "join_processes",
    "predict_files",
    "settings_of",
]
