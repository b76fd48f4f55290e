"""The Detectron2 that is installed: whether it is the mended wheel, or its main."""

import importlib.util
import os
import subprocess
import sys

import pytest
from detectron2.engine.train_loop import TrainerBase

IS_MAIN = hasattr(TrainerBase, "after_backward")
MENDED = importlib.util.find_spec("detectron2.utils.absent") is not None

mended_only = pytest.mark.skipif(not MENDED, reason="this Detectron2 is not the mended wheel")


def run_python(*args):
    """Run Python in a fresh interpreter that sees no GPU; return what it prints."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, args)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout
