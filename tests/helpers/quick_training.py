"""Trainings without work that takes a second in each and never differs."""

from contextlib import contextmanager
from unittest.mock import patch

import detectron2.engine.defaults
from detectron2.config import CfgNode
from matplotlib.figure import Figure

from rsb_d2.engine import pictures

_by_yaml = detectron2.engine.defaults._try_get_key


def _look_up(cfg, *keys, default=None):
    if not isinstance(cfg, CfgNode):
        return _by_yaml(cfg, *keys, default=default)
    return next((cfg[key] for key in keys if key in cfg), default)


class Sketch(Figure):
    """A figure of the same content, and of few pixels."""

    def __init__(self, figsize, layout):
        super().__init__(figsize=[side / 5 for side in figsize])

    def savefig(self, path, dpi):
        super().savefig(path, dpi=dpi / 2)


@contextmanager
def quick_training():
    """In this process, for as long as it is open.

    Detectron2 dumps and parses the complete config for each key that it looks up.
    """
    with (
        patch.object(detectron2.engine.defaults, "_try_get_key", _look_up),
        patch.object(pictures, "Figure", Sketch),
    ):
        yield
