"""One picture of the sample data: overlapping shapes of varied size, color and texture."""

import colorsys
from typing import List, NamedTuple, Tuple

import cv2
import numpy as np
import pycocotools.mask as mask_util

_MAX_OBJECTS = 4
_MIN_VISIBLE = 0.6  # part of an object that must stay visible, so that it can be recognized
_OBJECT_SIZES = (0.25, 0.65)  # diameter, relative to the shorter side of the image
_MIN_CONTRAST = 80  # between an object and its background: distance of mean colors in RGB
_SUPERSAMPLING = 4  # for smooth edges

Window = Tuple[slice, slice]  # rows and columns of a picture


class Shape(NamedTuple):
    """An object in a picture.

    Args:
        class_index (int): index into ``CLASS_NAMES``.
        polygon (np.ndarray): (N, 2) corners as x, y in pixels, including hidden parts.
        mask (np.ndarray): (H, W) of bool, including hidden parts.
        visible (np.ndarray): (H, W) of bool, without hidden parts.
    """

    class_index: int
    polygon: np.ndarray
    mask: np.ndarray
    visible: np.ndarray


def draw_picture(rng: np.random.Generator, image_size: int) -> Tuple[np.ndarray, List[Shape]]:
    """Draw a picture.

    Args:
        rng (np.random.Generator): the only source of randomness.
        image_size (int): longer side in pixels.

    Returns:
        np.ndarray: (H, W, 3) of uint8, RGB.
        List[Shape]: 1 to 4 objects, from back to front.
    """
    short = image_size * 3 // 4
    size = [(image_size, image_size), (short, image_size), (image_size, short)][rng.integers(3)]
    shapes = _place_shapes(rng, size)
    picture = _background(rng, size)
    for shape in shapes:
        window = _around(shape.polygon, size)
        alpha = _smooth_mask(shape.polygon, window)[..., None]
        paint = _paint(rng, size, window, shape, behind=picture[shape.mask].mean(axis=0))
        picture[window] = picture[window] * (1 - alpha) + paint * alpha
    picture += rng.normal(0, 3, (*size, 1))
    return picture.clip(0, 255).round().astype(np.uint8), shapes


def _place_shapes(rng: np.random.Generator, size: Tuple[int, int]) -> List[Shape]:
    shapes: List[Shape] = []
    num_objects = rng.integers(1, _MAX_OBJECTS + 1)
    for _ in range(4 * num_objects):
        if len(shapes) == num_objects:
            break
        front = _random_shape(rng, size)
        behind = [s._replace(visible=s.visible & ~front.mask) for s in shapes]
        if all(map(_is_recognizable, behind)):
            shapes = [*behind, front]
    return shapes


def _random_shape(rng: np.random.Generator, size: Tuple[int, int]) -> Shape:
    class_index = int(rng.integers(len(CLASS_NAMES)))
    diameter = min(size) * np.exp(rng.uniform(*np.log(_OBJECT_SIZES)))
    angle = rng.uniform(-np.pi / 10, np.pi / 10)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    corners = _OUTLINES[CLASS_NAMES[class_index]] @ rotation * diameter / 2
    low, high = 1 - corners.min(axis=0), np.array(size[::-1]) - 1 - corners.max(axis=0)
    polygon = (corners + rng.uniform(low, high)).round(2)
    mask = mask_util.decode(mask_util.frPyObjects([polygon.ravel().tolist()], *size))
    mask = mask[..., 0].astype(bool)
    return Shape(class_index, polygon, mask, visible=mask)


def _is_recognizable(shape: Shape) -> bool:
    """Return whether enough of an object is visible, without holes, which polygons cannot have."""
    if shape.visible.sum() < _MIN_VISIBLE * shape.mask.sum():
        return False
    _, hierarchy = cv2.findContours(
        shape.visible.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
    )
    return bool((hierarchy.reshape(-1, 4)[:, 3] < 0).all())


def _around(polygon: np.ndarray, size: Tuple[int, int]) -> Window:
    """Return a window that contains all pixels that a polygon touches."""
    low = np.maximum(np.floor(polygon.min(axis=0)).astype(int) - 1, 0)
    high = np.minimum(np.ceil(polygon.max(axis=0)).astype(int) + 2, size[::-1])
    return slice(low[1], high[1]), slice(low[0], high[0])


def _smooth_mask(polygon: np.ndarray, window: Window) -> np.ndarray:
    """Return the share of each pixel of a window that a polygon covers, from 0 to 1."""
    rows, columns = window
    height, width = rows.stop - rows.start, columns.stop - columns.start
    fine = np.zeros((height * _SUPERSAMPLING, width * _SUPERSAMPLING), dtype=np.uint8)
    corners = (polygon * _SUPERSAMPLING - 0.5).round().astype(np.int32)
    corners -= np.array([columns.start, rows.start], dtype=np.int32) * _SUPERSAMPLING
    cv2.fillPoly(fine, [corners], 255)
    return cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA) / 255.0


# ---- colors and textures ----


def _background(rng: np.random.Generator, size: Tuple[int, int]) -> np.ndarray:
    """Return dull clouds under a faint pattern: (H, W, 3), from 0 to 255."""
    gray = rng.uniform(70, 190)
    clouds = gray + rng.normal(0, 10, (4, 4, 1)) + rng.normal(0, 6, (4, 4, 3))
    clouds = cv2.resize(clouds, size[::-1], interpolation=cv2.INTER_CUBIC)
    everywhere = slice(0, size[0]), slice(0, size[1])
    pattern = _pattern(rng, size, everywhere, period=rng.uniform(6, 14))
    return clouds + (pattern[..., None] - 0.5) * rng.uniform(5, 25)


def _paint(
    rng: np.random.Generator,
    size: Tuple[int, int],
    window: Window,
    shape: Shape,
    behind: np.ndarray,
) -> np.ndarray:
    """Return a window of two colors with a texture that contrast with the mean color behind."""
    for _ in range(50):
        color = _random_color(rng)
        # Bright colors go with a darker one, dark colors with a brighter one.
        other = color * 0.8 if color.mean() > 110 else color + 0.25 * (255 - color)
        if min(np.linalg.norm(c - behind) for c in (color, other)) >= _MIN_CONTRAST:
            break
    diameter = np.ptp(shape.polygon, axis=0).max()
    pattern = _pattern(rng, size, window, period=max(5.0, diameter * rng.uniform(0.15, 0.3)))
    return color + (other - color) * pattern[..., None]


def _random_color(rng: np.random.Generator) -> np.ndarray:
    hue, saturation, value = rng.uniform([0, 0.6, 0.5], [1, 1, 1])
    return 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value))


def _pattern(
    rng: np.random.Generator, size: Tuple[int, int], window: Window, period: float
) -> np.ndarray:
    """Return a window of a random kind of pattern, from 0 to 1; ``period`` is in pixels."""
    kind = rng.choice(["plain", "gradient", "stripes", "dots"])
    y, x = np.ogrid[window]
    if kind == "plain":
        return np.zeros(np.broadcast(y, x).shape)
    angle = rng.uniform(0, np.pi)

    def along(x, y):
        return 2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period

    u = along(x, y)
    v = 2 * np.pi * (y * np.cos(angle) - x * np.sin(angle)) / period
    if kind == "gradient":  # ends in corners of the picture
        ends = along(np.array([0, size[1] - 1]), np.array([[0], [size[0] - 1]]))
        return (u - ends.min()) / (ends.max() - ends.min())
    waves = {
        "stripes": lambda: np.sin(u),
        "dots": lambda: np.sin(u) + np.sin(v) - 0.9,
    }
    return (0.5 + 1.5 * waves[kind]()).clip(0, 1)


# ---- shapes ----


def _arc(start: float, stop: float, num: int) -> np.ndarray:
    """Return (num, 2) points on the unit circle, from one angle to another."""
    angles = np.linspace(start, stop, num)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star() -> np.ndarray:
    corners = _arc(0, 2 * np.pi, 11)[:-1]
    corners[1::2] *= 0.42
    return corners


# Corners of each class, at a distance of 1 or less from the center. None has a hole, which a
# polygon cannot have.
_OUTLINES = {
    "circle": _arc(0, 2 * np.pi, 37)[:-1],
    "square": _arc(np.pi / 4, 2 * np.pi + np.pi / 4, 5)[:-1],
    "triangle": _arc(-np.pi / 2, 1.5 * np.pi, 4)[:-1],
    "star": _star(),
}
CLASS_NAMES = tuple(_OUTLINES)
