"""COCO files as other tools write them: find them with their images, and repair their records.

Training reads files as they are, except for annotations that it drops. A conversion also accepts
names of images on another machine, ids that are texts, missing sizes and boxes, and repeated ids.
"""

import itertools
import json
import os
from collections import Counter
from typing import Any, Dict, List, Sequence
from urllib.parse import unquote

import pycocotools.mask as mask_util

from ....data.images import BadImageError, image_size
from ....errors import UserError, first
from .records import end_below, is_number, split_in_name
from .shapes import box_of, compressed

Record = Dict[str, Any]


def splits_of(files: Sequence[str], folder: str) -> Dict[str, str]:
    """Return the files in a folder by the splits in their names.

    Raises:
        UserError: if two files would be of the same split.
    """
    found: Dict[str, str] = {}
    for file in files:
        split = split_in_name(file, folder)
        if split in found:
            raise UserError(
                f"{folder} has several files of COCO for {split}: {first([found[split], file])}; "
                "name the files of train, val and test, in this order"
            )
        found[split] = file
    return {split: found[split] for split in ("train", "val", "test") if split in found}


def images_of(file: str) -> str:
    """Return the folder of the images of a file: near it, where tools write them.

    Raises:
        UserError: if the first image is in none of these folders.
    """
    images = load(file).get("images")
    record = images[0] if isinstance(images, list) and images else None
    name = record.get("file_name") if isinstance(record, dict) else None
    folder, base = os.path.split(os.path.abspath(file))
    subset = os.path.splitext(base)[0].removeprefix("instances_")
    parts = (os.path.join("images", subset), subset, "images", ".")
    places = [os.path.join(f, part) for f in (folder, os.path.dirname(folder)) for part in parts]
    if isinstance(name, str):
        for find, place in itertools.product((_direct_name, _find), places):
            if os.path.isdir(place) and find(name, place) is not None:
                return os.path.normpath(place)
    raise UserError(f"{file}: name the folder of the images with --images")


def load(file: str) -> Record:
    """Return the contents of a file.

    Raises:
        UserError: if it cannot be read or is not an object in JSON.
    """
    try:
        with open(file, encoding="utf-8-sig") as f:
            content = json.load(f)
    except OSError as e:
        raise UserError(f"{file} cannot be read: {e.strerror}") from None
    except (ValueError, RecursionError) as e:
        raise UserError(f"{file}: is not valid JSON: {str(e)[:80]}") from None
    return content if isinstance(content, dict) else {}


def repair(content: Record, folder: str) -> Counter:
    """Repair the records of a file in place.

    Args:
        content (dict): its contents; anything that cannot be repaired stays, to be reported by the
            check of training.
        folder (str): of the images.

    Returns:
        Counter: the number of repaired records by what was done.
    """
    done: Counter = Counter()
    images, annotations, categories = (
        [r for r in records if isinstance(r, dict)] if isinstance(records, list) else []
        for records in map(content.get, ("images", "annotations", "categories"))
    )
    for record in itertools.chain(images, annotations, categories):
        for key in ("id", "image_id", "category_id"):
            value = record.get(key)
            if isinstance(value, str) and value.isdecimal() and len(value) < 19:
                record[key] = int(value)
                done["ids that are texts read as numbers"] += 1
    for record in images:
        _repair_image(record, folder, done)
    ids = [r.get("id") for r in annotations if _is_id(r.get("id"))]
    new_ids, seen = itertools.count(max(ids, default=0) + 1), set()
    for record in annotations:
        _repair_annotation(record, done)
        if _is_id(i := record.get("id")):
            if i in seen:
                record["id"] = next(new_ids)
                done["annotation ids changed, as another has the same"] += 1
            seen.add(i)
    return done


def _is_id(value: Any) -> bool:
    return type(value) is int


def _repair_image(record: Record, folder: str, done: Counter) -> None:
    name = record.get("file_name")
    if not isinstance(name, str) or not name:
        return
    found = _find(name, folder)
    if found is None:
        return
    if found not in (name, name.replace("\\", "/")):
        record["file_name"] = found
        done["image names of another machine looked up in the folder of the images"] += 1
    size = (record.get("width"), record.get("height"))
    if not all(type(n) is int and n > 0 for n in size):
        try:
            record["width"], record["height"] = image_size(os.path.join(folder, found))
        except BadImageError:
            return
        done["image sizes that are missing read from the images"] += 1


def _direct_name(name: str, folder: str) -> str | None:
    direct = name.replace("\\", "/")
    is_inside = not os.path.isabs(direct) and ".." not in direct.split("/")
    names = [n for n in (name, direct) if is_inside and os.path.isfile(os.path.join(folder, n))]
    return names[0] if names else None


def _find(name: str, folder: str) -> str | None:
    """Return the name of an image in a folder: that name, or its longest end that is there."""
    direct = _direct_name(name, folder)
    if direct is not None:
        return direct
    # Label Studio serves local files as /data/local-files/?d=NAME.
    for text in (name, unquote(name).replace("?d=", "/")):
        path = end_below(text, folder, splits=())
        if path is not None and os.path.isfile(path):
            return os.path.relpath(path, folder).replace(os.sep, "/")
    return None


def _repair_annotation(record: Record, done: Counter) -> None:
    mask = record.get("segmentation")
    if isinstance(mask, list) and len(mask) >= 6 and _are_numbers(mask):
        mask = record["segmentation"] = [mask]
        done["polygons that are not in a list wrapped in one"] += 1
    if record.get("bbox") or not mask:
        return
    box = _box_of_mask(mask)
    if box is not None:
        record["bbox"] = box
        done["boxes that are missing computed from masks"] += 1


def _box_of_mask(mask: Any) -> List[float] | None:
    if isinstance(mask, list):
        polygons = [p for p in mask if isinstance(p, list) and len(p) >= 6 and _are_numbers(p)]
        return list(box_of(polygons)) if polygons else None
    try:
        return mask_util.toBbox(compressed(mask)).tolist()
    except Exception:  # pycocotools raises anything, also for a mask that is not one
        return None


def _are_numbers(values: List[Any]) -> bool:
    return all(map(is_number, values))
