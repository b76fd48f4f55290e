"""The Detectron2 that is installed: the patched wheel of 0.6, or its main branch."""

import importlib.util
import os
import subprocess
import sys

import pytest
from detectron2.engine.train_loop import TrainerBase

IS_MAIN = hasattr(TrainerBase, "after_backward")
PATCHED = importlib.util.find_spec("detectron2.utils.absent") is not None

patched_only = pytest.mark.skipif(not PATCHED, reason="this Detectron2 is not the patched wheel")


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
