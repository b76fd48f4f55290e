"""Accumulation in two processes: one synchronisation a step, and the weights of one process."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from tests.helpers.counted_reductions import MeanLoss, make_batches, train
from tests.helpers.paths import ROOT

PROGRAM = ROOT / "tests" / "helpers" / "counted_reductions.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def test_gradients_are_synchronised_once_a_step(tmp_path):
    result = subprocess.run(
        [*TORCHRUN, str(PROGRAM), str(tmp_path / "found.json"), "1", "4"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    (reductions, weights), (reductions_of_parts, weights_of_parts) = found["1"], found["4"]
    assert reductions_of_parts == reductions and len(reductions) == 3 and min(reductions) >= 1
    assert weights_of_parts == pytest.approx(weights, rel=1e-5, abs=1e-6)

    torch.manual_seed(0)
    alone = MeanLoss()
    before = nn.utils.parameters_to_vector(alone.parameters()).tolist()
    list(train(alone, make_batches(), 1))
    expected = nn.utils.parameters_to_vector(alone.parameters()).tolist()
    assert weights_of_parts == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert expected != pytest.approx(before, rel=1e-2)
