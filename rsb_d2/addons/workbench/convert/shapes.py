"""Boxes, polygons and masks: clip them to the image, measure, join and convert them."""

import math
from typing import List, Sequence, Tuple

import cv2
import numpy as np
import pycocotools.mask as mask_util

from ....data.masks import polygon_area
from .records import DataSet, Object, Picture, Polygon, Problems

# Pixels by which a shape may reach beyond its image and is clipped without a note, because tools
# round differently. The check of COCO files has the same value.
_TOLERANCE = 1.0

_CORNERS = 64  # of polygons on ellipses


def box_of(polygons: Sequence[Polygon]) -> Tuple[float, float, float, float]:
    """Return the box around polygons: x, y, width, height; NaN if a point is not finite."""
    xs = [x for polygon in polygons for x in polygon[0::2]]
    ys = [y for polygon in polygons for y in polygon[1::2]]
    if not all(map(math.isfinite, xs + ys)):  # min and max may ignore NaN
        return (math.nan,) * 4
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


def ellipse(
    x: float, y: float, rx: float, ry: float, angle: float = 0.0
) -> Tuple[Polygon, Tuple[float, float, float, float]]:
    """Return a polygon of 64 corners on an ellipse, and the box of the ellipse.

    Args:
        x, y (float): the center.
        rx, ry (float): the radii.
        angle (float): of the first radius, in radians, clockwise in the image.
    """
    sin, cos = math.sin(angle), math.cos(angle)
    polygon: Polygon = []
    for a in (2 * math.pi * i / _CORNERS for i in range(_CORNERS)):
        u, v = rx * math.cos(a), ry * math.sin(a)
        polygon += [x + u * cos - v * sin, y + u * sin + v * cos]
    w, h = math.hypot(rx * cos, ry * sin), math.hypot(rx * sin, ry * cos)
    return polygon, (x - w, y - h, 2 * w, 2 * h)


def area_of(thing: Object) -> float:
    """Return the area of an object's mask, or of its box without one, in square pixels."""
    if thing.rle is not None:
        if isinstance(thing.rle["counts"], list):
            return float(sum(thing.rle["counts"][1::2]))
        return float(mask_util.area(thing.rle))
    if thing.polygons:
        return sum(map(polygon_area, thing.polygons))
    return thing.box[2] * thing.box[3]


def fit_objects(data: DataSet, problems: Problems, clip: bool, keep: bool = False) -> None:
    """Check all objects against their images, and drop empty and repeated ones.

    Args:
        data (DataSet): changed in place; its notes count everything left out or cut.
        problems (Problems): collects objects that are not finite or reach beyond their image.
        clip (bool): clip objects that reach beyond their image.
        keep (bool): change no other object.
    """
    seen_pictures = set()
    for picture in data.pictures():
        if id(picture) in seen_pictures:  # the image is in two splits
            continue
        seen_pictures.add(id(picture))
        kept, seen = [], set()
        for thing in picture.objects:
            reason = _fit(thing, picture, data, clip, keep)
            if reason:
                problems.add(thing.where, reason)
            if keep and not thing.is_cut:
                kept.append(thing)
                continue
            key = (thing.category, thing.crowd, thing.box, str(thing.polygons), str(thing.rle))
            if thing.box[2] <= 0 or thing.box[3] <= 0:
                data.notes["objects of no area left out"] += 1
            elif key in seen:
                data.notes["objects listed twice left out"] += 1
            else:
                seen.add(key)
                kept.append(thing)
        picture.objects = kept


def _fit(thing: Object, picture: Picture, data: DataSet, clip: bool, keep: bool) -> str:
    """Clip an object to its image; return its mistake, or ``""``."""
    numbers = [*thing.box, *(n for polygon in thing.polygons for n in polygon)]
    if not all(map(math.isfinite, numbers)):
        thing.box = (0, 0, 0, 0)
        return "has a number that is not finite"
    x, y, w, h = thing.box
    width, height = picture.size
    beyond = max(-x, -y, x + w - width, y + h - height)
    if beyond > _TOLERANCE and not clip:
        corners = ", ".join(f"{v:g}" for v in (x, y, x + w, y + h))
        return (
            f"reaches beyond the image: its box is {corners} (left, top, right, bottom) of "
            f"{width} x {height} pixels; correct it, or write --clip to clip such objects"
        )
    if keep and beyond <= _TOLERANCE:
        return ""
    if beyond > 0 and thing.rle is None:
        thing.is_cut = beyond > _TOLERANCE
        data.notes["objects cut at the edge of the image"] += thing.is_cut
        left, top = min(max(x, 0), width), min(max(y, 0), height)
        thing.box = (left, top, min(max(x + w, 0), width) - left, min(y + h, height) - top)
        if thing.polygons:
            polygons = [clip_polygon(p, width, height) for p in thing.polygons]
            thing.polygons = [p for p in polygons if len(p) >= 6]
            thing.box = box_of(thing.polygons) if thing.polygons else (0, 0, 0, 0)
    if thing.polygons and thing.rle is None:
        kept = [p for p in thing.polygons if polygon_area(p) > 0]
        data.notes["polygons of no area left out"] += len(thing.polygons) - len(kept)
        thing.polygons = kept
        thing.box = thing.box if kept else (0, 0, 0, 0)
    return ""


def clip_polygon(polygon: Polygon, width: float, height: float) -> Polygon:
    """Return the part of a polygon inside the image; empty if there is none.

    Parts of a concave polygon stay joined along the edge of the image, which encloses no area.
    Source: Sutherland and Hodgman, Reentrant polygon clipping, CACM 17 (1974).
    """
    points = list(zip(polygon[0::2], polygon[1::2]))
    for axis, edge, sign in ((0, 0, 1), (0, width, -1), (1, 0, 1), (1, height, -1)):
        cut = []
        for a, b in zip(points[-1:] + points[:-1], points):
            inside_a, inside_b = (sign * (p[axis] - edge) >= 0 for p in (a, b))
            if inside_a != inside_b:
                t = (edge - a[axis]) / (b[axis] - a[axis])
                crossing = [a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1])]
                crossing[axis] = float(edge)
                cut.append(tuple(crossing))
            if inside_b:
                cut.append(b)
        points = cut
    return [float(v) for point in points for v in point]


def join_polygons(polygons: Sequence[Polygon]) -> Polygon:
    """Join polygons to one of the same area by bridges of zero width between nearest points.

    Args:
        polygons (sequence of Polygon): one or more.
    """
    rings = [np.asarray(p, dtype=float).reshape(-1, 2) for p in polygons]
    rings = [ring if _signed_area(ring) >= 0 else ring[::-1] for ring in rings]
    joined, todo = rings[0], rings[1:]
    while todo:
        distances = [((joined[:, None] - ring[None]) ** 2).sum(2) for ring in todo]
        nearest = min(range(len(todo)), key=lambda i: distances[i].min())
        ring = todo.pop(nearest)
        i, j = np.unravel_index(distances[nearest].argmin(), distances[nearest].shape)
        around = np.concatenate([np.roll(ring, -j, axis=0), ring[j : j + 1]])
        joined = np.concatenate([joined[: i + 1], around, joined[i:]])
    return joined.ravel().tolist()


def _signed_area(ring: np.ndarray) -> float:
    x, y = ring.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def polygons_of_mask(mask: np.ndarray) -> Tuple[List[Polygon], bool]:
    """Return the outlines of a mask, and whether it has holes, which the outlines fill.

    Args:
        mask (ndarray): (H, W), nonzero inside the object. Outlines are through pixel centers.
    """
    found, hierarchy = cv2.findContours(
        np.ascontiguousarray(mask, dtype=np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
    )
    polygons, holes = [], False
    for contour, (_, _, _, parent) in zip(found, hierarchy[0] if found else []):
        if parent >= 0:
            holes = True
        elif len(contour) >= 3:
            # As in Detectron2's GenericMask: contours are pixel indices, polygons coordinates.
            polygons.append((contour.reshape(-1) + 0.5).tolist())
    return polygons, holes


def compressed(rle: dict) -> dict:
    """Return COCO's run lengths in the compressed form, which pycocotools needs."""
    if isinstance(rle["counts"], list):
        return mask_util.frPyObjects(rle, *rle["size"])
    return rle


def decode_rle(rle: dict) -> np.ndarray:
    """Decode COCO's run lengths, compressed or not, to a mask: (H, W)."""
    return mask_util.decode(compressed(rle))
