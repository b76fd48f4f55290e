"""Detections drawn as by Detectron2's ``Visualizer``, in a twentieth of its time.

OpenCV draws, Pillow writes text; sizes are those of the ``Visualizer``, and an object has the color
of its class. supervision (0.31) takes longer (800 x 1200 pixels, 20 objects with masks: 37 ms, or
55 ms with its annotator for TrueType fonts; here 20 ms) and writes with one font, which has not the
characters of all scripts.
"""

import colorsys
import functools
from typing import List, Sequence, Tuple

import cv2
import numpy as np
from detectron2.structures import Instances

from ...visualization import class_colors, readable_scale, text_mask

# From detectron2/utils/visualizer.py: area in pixels below which a label is next to its object, and
# the score above which a keypoint is shown.
_SMALL_OBJECT = 1000
_KEYPOINT_THRESHOLD = 0.05
# The visualizer has 0.5 for boxes and 0.8 for masks, with colors that are lightened at random.
_BOX_ALPHA, _MASK_ALPHA, _LABEL_ALPHA = 0.8, 0.6, 0.8
_PIXELS_PER_POINT = 100 / 72  # at the resolution of the visualizer


def draw_detections(image: np.ndarray, instances: Instances, names: Sequence[str]) -> np.ndarray:
    """Draw detections on a copy of an image.

    Args:
        image (ndarray): RGB, (H, W, 3), uint8.
        instances (Instances): detections, on the CPU.
        names (list[str]): of the classes.

    Returns:
        ndarray: RGB; enlarged if labels would not be readable, reduced if a side would be longer
        than JPEG allows.
    """
    scale = readable_scale(image)
    height, width = image.shape[:2]
    if scale != 1:
        size = max(int(width * scale + 0.01), 1), max(int(height * scale + 0.01), 1)
        how = cv2.INTER_LINEAR if scale > 1 else cv2.INTER_AREA
        picture = cv2.resize(image, size, interpolation=how)
    else:
        picture = image.copy()
    boxes = instances.pred_boxes.tensor.numpy() * scale
    order = np.argsort(-np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), kind="stable").tolist()
    font_size = max((height * width) ** 0.5 // 90, 10 // scale)
    palette = class_colors(len(names))
    colors = [palette[index] for index in instances.pred_classes.tolist()]
    masks = instances.pred_masks.numpy() if instances.has("pred_masks") else None
    for i in order:
        _draw_box(picture, boxes[i], colors[i], _pixels(max(font_size / 4, 1) * scale))
        if masks is not None:
            _draw_mask(
                picture, masks[i], scale, colors[i], _pixels(max(font_size // 15 * scale, 1))
            )
    if instances.has("pred_keypoints"):
        _draw_keypoints(picture, instances.pred_keypoints.numpy(), scale)
    scores, classes = instances.scores.tolist(), instances.pred_classes.tolist()
    for i in order:
        text = f"{names[classes[i]]} {scores[i] * 100:.0f}%"
        _draw_label(picture, text, boxes[i], colors[i], font_size * scale, scale)
    return picture


def _pixels(points: float) -> int:
    return max(round(points * _PIXELS_PER_POINT), 1)


def _draw_box(picture: np.ndarray, box: np.ndarray, color: Tuple, thickness: int) -> None:
    x0, y0, x1, y1 = np.round(box).astype(int).tolist()
    before = thickness // 2
    after = thickness - before
    left, right, top, bottom = x0 - before, x1 + after, y0 - before, y1 + after
    for rows, columns in (
        ((top, y0 + after), (left, right)),
        ((max(y1 - before, y0 + after), bottom), (left, right)),
        ((y0 + after, y1 - before), (left, x0 + after)),
        ((y0 + after, y1 - before), (max(x1 - before, x0 + after), right)),
    ):
        strip = picture[_inside(rows), _inside(columns)]
        if strip.size:
            strip[:] = _blend(strip, color, _BOX_ALPHA)


def _inside(ends: Tuple[int, int]) -> slice:
    return slice(max(ends[0], 0), max(ends[1], 0))


def _blend(pixels: np.ndarray, color: Tuple, alpha: float) -> np.ndarray:
    return (pixels * np.float32(1 - alpha) + np.float32(alpha) * np.float32(color)).astype(np.uint8)


def _draw_mask(
    picture: np.ndarray, mask: np.ndarray, scale: float, color: Tuple, thickness: int
) -> None:
    mask = np.ascontiguousarray(mask).view(np.uint8)
    x, y, w, h = cv2.boundingRect(mask)
    if not w:
        return
    contours, _ = cv2.findContours(
        mask[y : y + h, x : x + w], cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(x, y)
    )
    contours = [np.round((c + 0.5) * scale - 0.5).astype(np.int32) for c in contours]
    corners = np.concatenate(contours).reshape(-1, 2)
    (left, top), (right, bottom) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    region = picture[top : bottom + 1, left : right + 1]
    if not region.size:  # less than half a pixel at the edge of a reduced picture
        return
    filled = np.zeros(region.shape[:2], dtype=np.uint8)
    cv2.fillPoly(filled, contours, 1, offset=(-left, -top))
    inside = filled.astype(bool)
    region[inside] = _blend(region[inside], color, _MASK_ALPHA)
    cv2.polylines(picture, contours, True, color, thickness, cv2.LINE_AA)


def _draw_label(
    picture: np.ndarray, text: str, box: np.ndarray, color: Tuple, font_size: float, scale: float
) -> None:
    x0, y0, x1, y1 = box.tolist()
    height, width = picture.shape[:2]
    x, y = x0, y0
    if (y1 - y0) * (x1 - x0) < _SMALL_OBJECT * scale or y1 - y0 < 40 * scale:
        # Next to a small object, not on it.
        x, y = (x1, y0) if y1 >= height - 5 else (x0, y1)
    ratio = (y1 - y0) / (height * width) ** 0.5
    size = float(np.clip((ratio - 0.02) / 0.08 + 1, 1.2, 2)) * 0.5 * font_size
    ink = text_mask(text, max(_pixels(size), 6))
    left = int(min(max(round(x), 0), max(width - ink.shape[1], 0)))
    top = int(min(max(round(y), 0), max(height - ink.shape[0], 0)))
    region = picture[top : top + ink.shape[0], left : left + ink.shape[1]]
    ink = ink[: region.shape[0], : region.shape[1], None]
    dark = region * np.float32(1 - _LABEL_ALPHA)
    region[:] = (dark + ink * (np.float32(_lighter(color)) - dark)).astype(np.uint8)


@functools.lru_cache(maxsize=64)
def _lighter(color: Tuple[int, int, int]) -> List[float]:
    """Return the color of a class as text color on black."""
    hue, lightness, saturation = colorsys.rgb_to_hls(*(c / 255 for c in color))
    light = np.array(colorsys.hls_to_rgb(hue, min(1.7 * lightness, 1.0), saturation))
    light = np.maximum(light, 0.2)
    light[light.argmax()] = max(0.8, light.max())
    return (255 * light).tolist()


def _draw_keypoints(picture: np.ndarray, keypoints: np.ndarray, scale: float) -> None:
    for x, y, score in keypoints.reshape(-1, 3).tolist():
        if score > _KEYPOINT_THRESHOLD:
            center = round(x * scale), round(y * scale)
            cv2.circle(picture, center, round(3 * scale), (255, 60, 60), -1, cv2.LINE_AA)
