"""What was written against what is read from it."""

import os
from typing import Sequence

import numpy as np

from ....errors import UserError, first
from .records import DataSet, Object

_TOLERANCE = 0.01  # pixels; files have more digits than that


def check_same(written: DataSet, found: DataSet) -> None:
    """Check that a data set is read as it was to be written.

    Args:
        written (DataSet): what the files are to hold.
        found (DataSet): what was read from them.

    Raises:
        UserError: with the first thing that differs.
    """
    start = "what was written is not read as it was, so nothing is kept:"
    if (found.names, found.splits.keys()) != (written.names, written.splits.keys()):
        raise UserError(
            f"{start} classes {first(found.names)} and splits {first(found.splits)}, not "
            f"{first(written.names)} and {first(written.splits)}"
        )
    for split, pictures in written.splits.items():
        others = {os.path.realpath(picture.path): picture for picture in found.splits[split]}
        expected = {os.path.realpath(picture.path): picture for picture in pictures}
        if others.keys() != expected.keys():
            names = first(sorted(expected.keys() ^ others.keys()))
            raise UserError(f"{start} the images of {split} differ in {names}")
        for path, picture in expected.items():
            a, b = picture.objects, others[path].objects
            is_same = len(a) == len(b) and all(map(_is_same, a, b))
            if not is_same or picture.size != others[path].size:
                raise UserError(f"{start} {first([path])} has other objects, or another size")


def _is_same(a: Object, b: Object) -> bool:
    return (
        (a.category, a.crowd, a.rle) == (b.category, b.crowd, b.rle)
        and _is_close(a.box, b.box)
        and len(a.polygons) == len(b.polygons)
        and all(map(_is_close, a.polygons, b.polygons))
    )


def _is_close(a: Sequence[float], b: Sequence[float]) -> bool:
    return len(a) == len(b) and bool(np.allclose(a, b, rtol=1e-6, atol=_TOLERANCE))
