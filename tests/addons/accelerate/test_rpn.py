"""The choice of the best proposals."""

import torch

from rsb_d2.addons.accelerate.rpn import best


def test_best_is_a_stable_sort(device):
    values = torch.randint(0, 50, (3, 400)).float().to(device)  # with many equal ones
    values[1, 7] = -torch.inf
    values[2, 9] = torch.nan
    for num in (1, 60, 399, 400, 500):
        sorted_values, index = values.sort(dim=1, descending=True, stable=True)
        found, found_index = best(values, num)
        torch.testing.assert_close(found, sorted_values[:, :num], rtol=0, atol=0, equal_nan=True)
        assert torch.equal(found_index, index[:, :num])
