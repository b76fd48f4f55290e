"""Masks of COCO's format, checked before pycocotools decodes them.

pycocotools fills a mask whose runs end early with whatever is in memory, reads beyond a string
that is cut short, and walks along the edges of a polygon however long they are.
"""

import math
from typing import Any, List, Sequence

import numpy as np

# A count of an image of 2^31 pixels has 7 characters of 5 bits; pycocotools has 32 bits for it.
_MAX_CHARACTERS = 7


def is_polygon(polygon: Any, size: List[int]) -> bool:
    """Whether a value is a polygon of a mask in an image of this size, (height, width) in pixels.

    It is a list ``[x, y, ...]`` of three points or more, in pixels, none of them further from the
    image than its longer side.
    """
    if not isinstance(polygon, (list, tuple, np.ndarray)) or len(polygon) < 6 or len(polygon) % 2:
        return False
    side = max(size)
    try:  # the sum for NaN, which compares with nothing
        in_reach = -side <= min(polygon) and max(polygon) <= 2 * side
        return bool(in_reach and math.isfinite(sum(polygon)))
    except (TypeError, ValueError):  # not numbers
        return False


def polygon_area(polygon: Sequence[float]) -> float:
    """Return the area of one polygon ``[x, y, ...]`` in square pixels, by the shoelace formula."""
    x, y = polygon[0::2], polygon[1::2]
    return float(0.5 * np.abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))


def is_finite(value: Any) -> bool:
    """Whether this is a number (no bool), and a finite one, that fits into a float."""
    if type(value) not in (int, float) and not isinstance(value, (np.integer, np.floating)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of more than 308 digits
        return False


def is_rle(rle: Any, size: List[int], *, may_be_empty: bool = False) -> bool:
    """Whether a value is a run-length encoded mask of an image of this size, (height, width).

    It is a dict with ``size``, ``[height, width]``, and ``counts``, a list of lengths in pixels or
    COCO's compressed string of them. ``may_be_empty`` accepts a mask without a pixel.
    """
    if not isinstance(rle, dict) or not isinstance(rle.get("size"), (list, tuple)):
        return False
    counts = rle.get("counts")
    if list(rle["size"]) != list(size):
        return False
    if isinstance(counts, list):
        if not all(type(count) is int and 0 <= count <= size[0] * size[1] for count in counts):
            return False
        counts = np.array(counts, dtype=np.int64)
    elif isinstance(counts, (str, bytes)):
        counts = _decompress(counts)
    else:
        return False
    if counts is None or (counts < 0).any():
        return False
    if int(counts.sum()) != size[0] * size[1]:
        return False
    return may_be_empty or int(counts[1::2].sum()) > 0


def _decompress(text: str | bytes) -> np.ndarray | None:
    """The counts of COCO's string, as ``rleFrString`` of cocoapi's maskApi.c reads it.

    Six bits a character, from "0" on: five of the number, the lowest first, and whether there are
    more. From the fourth on, a number is the difference to the last but one.
    """
    if isinstance(text, str):
        if not text.isascii():
            return None
        text = text.encode("ascii")
    codes = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _MAX_CHARACTERS:
        return None
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((codes & 31) << shifts, starts)
    numbers -= np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)
    counts = numbers.copy()
    counts[1::2] = np.cumsum(numbers[1::2])
    counts[2::2] = np.cumsum(numbers[2::2])
    return counts
