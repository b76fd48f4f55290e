"""Accumulation in two processes: one synchronisation a step, and the weights of one process."""

import pytest
import torch
from torch import nn

from tests.helpers.counted_reductions import MeanLoss, make_batches, train, train_distributed
from tests.helpers.runs.forked import run_forked


def test_gradients_are_synchronised_once_a_step(tmp_path):
    found, _ = run_forked(lambda rank: [train_distributed(n) for n in (1, 4)], tmp_path)
    (reductions, weights), (reductions_of_parts, weights_of_parts) = found
    assert reductions_of_parts == reductions and len(reductions) == 3 and min(reductions) >= 1
    assert weights_of_parts == pytest.approx(weights, rel=1e-5, abs=1e-6)

    torch.manual_seed(0)
    alone = MeanLoss()
    before = nn.utils.parameters_to_vector(alone.parameters()).tolist()
    list(train(alone, make_batches(), 1))
    expected = nn.utils.parameters_to_vector(alone.parameters()).tolist()
    assert weights_of_parts == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert expected != pytest.approx(before, rel=1e-2)
