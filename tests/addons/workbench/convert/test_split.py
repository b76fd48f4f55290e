"""Splits: sizes, shares of each class, seeds."""

from collections import Counter

import numpy as np
import pytest

from rsb_d2 import UserError
from rsb_d2.addons.workbench.convert.split import split_by_class


def made(num_images, seed=0):
    """Images with up to three classes, of which the last is in one image of 40."""
    rng = np.random.default_rng(seed)
    rates = {"often": 0.7, "half": 0.5, "tenth": 0.1, "rare": 0.025}
    return [
        {name for name, rate in rates.items() if rng.random() < rate} for _ in range(num_images)
    ]


@pytest.mark.parametrize("share", [0.5, 0.8, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_each_class_has_its_share(share, seed):
    labels = made(400, seed)
    train, val = split_by_class(labels, share, seed)
    assert len(train) == round(400 * share) and sorted(train + val) == list(range(400))
    counts = [Counter(n for i in part for n in labels[i] or {""}) for part in (train, val)]
    for name in counts[0] | counts[1]:
        whole = counts[0][name] + counts[1][name]
        assert abs(counts[0][name] - share * whole) <= max(1, 0.02 * whole)


def test_a_seed_is_a_split():
    labels = made(100)
    assert split_by_class(labels, 0.8, 1) == split_by_class(labels, 0.8, 1)
    assert split_by_class(labels, 0.8, 1) != split_by_class(labels, 0.8, 2)


def test_a_class_of_two_images_is_in_both_parts():
    labels = [{"many"}] * 30 + [{"two", "many"}] * 2 + [set()] * 5
    train, val = split_by_class(labels, 0.9, 0)
    assert all({30, 31} & set(part) for part in (train, val))


@pytest.mark.parametrize("share", [0, 1, 80, -1, float("nan")])
def test_a_share_that_is_none(share):
    with pytest.raises(UserError, match="--split is"):
        split_by_class(made(10), share, 0)


def test_one_image_cannot_be_split():
    with pytest.raises(UserError, match="there are 1 images"):
        split_by_class([{"a"}], 0.8, 0)
    assert sorted(map(len, split_by_class([{"a"}, set()], 0.8, 0))) == [1, 1]
