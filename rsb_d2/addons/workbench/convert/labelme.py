"""LabelMe, which hotcoco does not read: a JSON file per image with polygons, rectangles and masks.

A circle becomes a polygon of 64 corners, an oriented rectangle one of four; X-AnyLabeling calls it
``rotation``. Shapes with the same label and ``group_id`` are one object of several polygons.
Points, lines and shapes labeled ``__ignore__`` are left out. An image that is stored only in its
JSON file is written next to the COCO file.
"""

import base64
import binascii
import io
import json
import math
import os
from collections import Counter
from typing import Any, Dict, List, Tuple

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

from ....errors import UserError, first
from .records import (
    DataSet,
    ImageFinder,
    Object,
    Picture,
    Polygon,
    Problems,
    claim,
    files_in,
    in_order,
    is_number,
    note_left_out,
    progress,
)
from .shapes import box_of, ellipse

_IGNORED = ("__ignore__", "_background_")
_OPEN_SHAPES = ("point", "points", "line", "linestrip")
_NOTE = "points, lines and shapes called __ignore__ left out"
_EMPTY_MASKS = "masks without a pixel left out"


def read_labelme(path: str, images: str, output: str, problems: Problems) -> DataSet:
    """Read a data set.

    Args:
        path (str): a JSON file, or a folder of them. Subfolders called ``train``, ``val`` and
            ``test`` are splits.
        images (str): folder of the images; ``""`` for the paths in the files.
        output (str): folder for the images that are stored only in JSON files.
        problems (Problems): collects mistakes in the files.

    Raises:
        UserError: if there is no file of LabelMe, or if an image cannot be read.
    """
    root = path if os.path.isdir(path) else os.path.dirname(path) or "."
    files = files_in(path, (".json",)) if os.path.isdir(path) else [path]
    finder = ImageFinder(root, images)
    notes: Counter = Counter()
    claims: Dict[str, str] = {}
    pictures: List[Picture] = []
    others: List[str] = []
    for file in progress(files, "JSON files"):
        content = _load(file, problems)
        if content is None:
            continue
        if not isinstance(content.get("shapes"), list):
            others.append(file)
            continue
        picture = _read_picture(content, file, finder, root, output, problems)
        if picture is not None and claim(claims, picture.path, file, problems):
            pictures.append(picture)
            picture.objects = _read_shapes(content["shapes"], picture, notes, problems)
    problems.stop_if_any()
    if not pictures:
        raise UserError(f"{path} has no JSON files of LabelMe")
    if os.path.isdir(path):
        pictures += finder.unlabelled(claims, notes)
    names = sorted({thing.category for picture in pictures for thing in picture.objects})
    data = DataSet(names, in_order(finder.by_folder(pictures)), notes)
    data.count_read(pictures)
    named = first((os.path.relpath(file, root) for file in others), 3)
    notes[f"JSON files without 'shapes' left out ({named})"] += len(others)
    if os.path.isdir(path):
        note_left_out(data, [path, images] if images else [path], [*others, *finder.unreadable])
    return data


def _load(file: str, problems: Problems) -> Dict[str, Any] | None:
    try:
        with open(file, encoding="utf-8-sig") as f:
            content = json.load(f)
    except OSError as e:
        problems.add(file, f"cannot be read: {e.strerror}")
    except (ValueError, RecursionError) as e:
        problems.add(file, f"is truncated or not JSON ({str(e)[:80]})")
    else:
        return content if isinstance(content, dict) else {}
    return None


def _read_picture(
    content: Dict[str, Any],
    file: str,
    finder: ImageFinder,
    root: str,
    output: str,
    problems: Problems,
) -> Picture | None:
    name = content.get("imagePath")
    if not isinstance(name, str) or name.lower().endswith(".json"):
        name = ""  # LabelMe's own tutorial has a file that names itself
    data = content.get("imageData")
    path, embedded = finder.look(file, name), b""
    if path is None and isinstance(data, str) and data:
        try:
            embedded = base64.b64decode(data, validate=False)
            with Image.open(io.BytesIO(embedded)) as image:
                size, kind = image.size, (image.format or "png").lower()
        except (binascii.Error, OSError, ValueError):
            problems.add(file, "has 'imageData' that is not an image, and no image file")
            return None
        stem = os.path.splitext(os.path.relpath(file, root))[0]
        path = os.path.join(output, "images", f"{stem}.{'jpg' if kind == 'jpeg' else kind}")
    else:
        path, size = finder.find(file, name, problems)
        if path is None:
            return None
    stated = (content.get("imageWidth"), content.get("imageHeight"))
    if all(type(n) in (int, float) and n > 0 for n in stated) and stated != size:
        problems.add(file, finder.other_size(path, stated, size))
        return None
    return Picture(path, size, source=file, embedded=embedded)


def _read_shapes(
    shapes: List[Any], picture: Picture, notes: Counter, problems: Problems
) -> List[Object]:
    groups: Dict[Tuple, Object] = {}
    picture.num_read = len(shapes)
    for number, shape in enumerate(shapes, 1):
        where = f"{picture.source}, shape {number}"
        try:
            thing = _read_shape(shape, picture.size, where)
        except ValueError as e:
            problems.add(where, str(e))
            continue
        if thing is None:
            notes[_EMPTY_MASKS if shape.get("shape_type") == "mask" else _NOTE] += 1
            continue
        group = shape.get("group_id")
        key = (thing.category, number if group is None else f"group {group}")
        if key in groups:
            notes["shapes joined to others of their group"] += 1
            _merge(groups[key], thing, picture.size)
        else:
            groups[key] = thing
    return list(groups.values())


def _read_shape(shape: Any, size: Tuple[int, int], where: str) -> Object | None:
    label = shape.get("label") if isinstance(shape, dict) else None
    label = str(label).strip() if type(label) in (str, int) else ""
    if not label:
        raise ValueError("has no 'label'")
    kind = shape.get("shape_type") or "polygon"
    if label in _IGNORED or kind in _OPEN_SHAPES:
        return None
    points = shape.get("points")
    if not isinstance(points, list) or not all(map(_is_point, points)):
        raise ValueError("has 'points' that are not [[x, y], ...]")
    if kind == "mask":
        return _read_mask(shape, label, points, size, where)
    if kind == "rectangle" and len(points) in (2, 4):
        x, y, w, h = box_of([[n for point in points for n in point]])
        return Object(label, (x, y, w, h), where=where)
    if kind == "circle" and len(points) == 2:
        radius = math.dist(*points)
        polygon, box = ellipse(*points[0], radius, radius)
        return Object(label, box, [polygon], where=where)
    if kind == "polygon" and len(points) < 3:
        raise ValueError(f"is a polygon of {len(points)} points, but needs three or more")
    if kind not in ("polygon", "oriented_rectangle", "rotation"):
        raise ValueError(f"is a {kind} of {len(points)} points, which is not supported")
    polygon = [float(n) for point in points for n in point]
    return Object(label, box_of([polygon]), [polygon], where=where)


def _is_point(point: Any) -> bool:
    return isinstance(point, list) and len(point) == 2 and all(map(is_number, point))


def _read_mask(
    shape: Dict[str, Any], label: str, points: List[List[float]], size: Tuple[int, int], where: str
) -> Object | None:
    """Read a binary image, which fills the box from the first to the last pixel in ``points``.

    Returns:
        Object or None: None for a mask without a pixel, as AI-assisted labeling may leave.
    """
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as image:
            part = np.asarray(image).astype(bool)
        if not part.any():
            return None
        x, y = (int(n) for n in points[0])
        mask = np.zeros(size[::-1], dtype=np.uint8, order="F")
        mask[y : y + part.shape[0], x : x + part.shape[1]] = part
        if min(x, y) < 0 or not mask.any():
            raise ValueError
    except (KeyError, IndexError, TypeError, ValueError, OverflowError, OSError, binascii.Error):
        raise ValueError("has a 'mask' that is not an image of a mask inside the image") from None
    return _of_mask(label, mask, where)


def _of_mask(label: str, mask: np.ndarray, where: str) -> Object:
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    box = tuple(float(n) for n in mask_util.toBbox(rle))
    return Object(label, box, rle={**rle, "counts": rle["counts"].decode()}, where=where)


def _merge(thing: Object, other: Object, size: Tuple[int, int]) -> None:
    """Add a shape of the same group to an object."""
    if thing.rle is None and other.rle is None:
        thing.polygons = _outline(thing) + _outline(other)
        thing.box = box_of(thing.polygons)
        return
    rles = [
        one.rle or mask_util.merge(mask_util.frPyObjects(_outline(one), *size[::-1]))
        for one in (thing, other)
    ]
    merged = _of_mask(thing.category, mask_util.decode(mask_util.merge(rles)), thing.where)
    thing.box, thing.rle, thing.polygons = merged.box, merged.rle, []


def _outline(thing: Object) -> List[Polygon]:
    x, y, w, h = thing.box
    return thing.polygons or [[x, y, x + w, y, x + w, y + h, x, y + h]]
