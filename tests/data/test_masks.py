"""Polygons and RLE: which ones can be used."""

import numpy as np
import pycocotools.mask as mask_util
import pytest

from rsb_d2.data.masks import is_polygon, is_rle


def test_rle_against_pycocotools():
    rng = np.random.default_rng(0)
    for i in range(60):
        mask = (rng.random(rng.integers(1, 40, 2)) < rng.random()).astype(np.uint8)
        mask[: i % 3] = 1
        size = list(mask.shape)
        rle = mask_util.encode(np.asfortranarray(mask))
        text = {**rle, "counts": rle["counts"].decode()}
        changes = np.flatnonzero(np.diff(mask.flatten("F"), prepend=0))
        runs = np.diff(changes, prepend=0, append=mask.size)
        listed = {**rle, "counts": runs.tolist()}
        for kind in (rle, text, listed):
            assert is_rle(kind, size) == bool(mask.any())
            assert is_rle(kind, size, may_be_empty=True)
            assert not is_rle(kind, [size[0] + 1, size[1]])
        assert not is_rle({**rle, "counts": runs.tolist() + [1]}, size)
        assert not is_rle({**rle, "counts": rle["counts"] + b"1"}, size)


@pytest.mark.parametrize(
    "counts", ["", "o", "\x00", "é", "P" * 50, "0P0", [], [-1, 21], [20.0], [1e9], None, 5, [[20]]]
)
def test_damaged_rle(counts):
    assert not is_rle({"size": [4, 5], "counts": counts}, [4, 5])


@pytest.mark.parametrize("size", [None, 4, [4], ["4", "5"], [5, 4], [4, 5, 1]])
def test_rle_with_a_wrong_size(size):
    assert is_rle({"size": [4, 5], "counts": [10, 10]}, [4, 5])
    assert not is_rle({"size": size, "counts": [10, 10]}, [4, 5])


@pytest.mark.parametrize(
    "polygon, usable",
    [
        ([0, 0, 5, 0, 5, 5], True),
        ([-3.5, 0, 12, 0, 5, 5], True),
        (np.array([0.0, 0, 5, 0, 5, 5]), True),
        ([0, 0, 5, 5], False),
        ([0, 0, 5, 0, 5], False),
        ([0, 0, 5, 0, 5, float("nan")], False),
        ([0, 0, 5, 0, 5, float("inf")], False),
        ([0, 0, 5, 0, 5, 10**400], False),
        ([10**400, 0, -(10**400), 0, 5, 5], False),
        ([0, 0, 5, 0, 5, 1e6], False),
        ([0, 0, 5, 0, 5, "5"], False),
        ([0, 0, 5, 0, 5, None], False),
        ([[0, 0], [5, 0], [5, 5], [5, 5], [1, 1], [2, 2]], False),
        ("[0, 0, 5, 0, 5, 5]", False),
        (7, False),
    ],
)
def test_polygons(polygon, usable):
    assert is_polygon(polygon, [8, 10]) is usable
