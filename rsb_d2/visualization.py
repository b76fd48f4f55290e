"""What pictures of several rooms are drawn with: the colours of the classes, and the scale."""

from typing import List, Tuple

import matplotlib
import numpy as np

# RGB in 0 ... 255: one for each class, in turn.
PALETTE = [
    tuple(round(255 * c) for c in matplotlib.colormaps["tab10"](i)[:3])
    for i in (0, 1, 2, 3, 4, 6, 8, 9)
]


def class_colors(num_classes: int) -> List[Tuple[int, int, int]]:
    """A colour for each class, RGB in 0 ... 255; the palette again from its beginning at its end.

    Args:
        num_classes (int): 0 or more.
    """
    return [PALETTE[i % len(PALETTE)] for i in range(num_classes)]


# Of a JPEG, in pixels: JPEG_MAX_DIMENSION of https://github.com/libjpeg-turbo/libjpeg-turbo.
LONGEST_SIDE = 65_500


def readable_scale(image: np.ndarray, short_side: int = 320) -> float:
    """The factor that makes labels on a small image readable, and a picture one that JPEG holds.

    Args:
        image (ndarray): of shape (H, W, ...).
        short_side (int): pixels that the shorter side should at least have.

    Returns:
        float: 1 or more; less for a long image, so that no side is longer than 65,500 pixels.
    """
    sides = image.shape[:2]
    return min(max(1.0, short_side / min(sides)), LONGEST_SIDE / max(sides))
