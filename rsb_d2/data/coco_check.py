"""The rules by which one COCO-format file is checked: those at which it stops.

What makes a file ambiguous or unusable (broken JSON, ids twice, unknown categories, image files
that are not there) stops with a :class:`UserError`. A single annotation that cannot be used (of
an unknown image, a box of no area or outside its image, no usable mask where masks are trained)
is dropped, and counted in one warning. What Detectron2's reader or pycocotools needs and many
files leave out (``iscrowd``, ``area``) is filled in.
"""

import os
from collections import Counter
from typing import Any, Dict, List, Set

from ..errors import UserError, first, first_ids, is_utf8
from .masks import is_finite
from .opening import find_missing

# What fits into 64 and 32 bits, as ids and sizes have to in pycocotools and in images.
_MAX_ID = 2**63 - 1
_MAX_SIZE = 2**31 - 1


def _check_ids(records: List[Dict[str, Any]], key: str) -> None:
    wrong = [i for i, record in enumerate(records) if not _is_id(record.get("id"))]
    if wrong:
        raise UserError(
            f"{len(wrong)} of '{key}' have no 'id' that is an integer of at most 64 bits; give "
            f"them one (positions in the list: {first(wrong)})"
        )
    _check_no_duplicates([record["id"] for record in records], f"ids in '{key}'")


def _is_id(value: Any) -> bool:
    return type(value) is int and abs(value) <= _MAX_ID


def _check_no_duplicates(values: List[Any], what: str) -> None:
    if len(set(values)) == len(values):
        return
    duplicates = [value for value, count in Counter(values).items() if count > 1]
    raise UserError(
        f"{len(duplicates)} {what} are there more than once ({first(duplicates)}); "
        "each must be there once"
    )


def check_categories(categories: List[Dict[str, Any]]) -> None:
    if not categories:
        raise UserError("'categories' is empty; list the categories with their ids and names")
    _check_ids(categories, "categories")
    names = [category.get("name") for category in categories]
    nameless = [c["id"] for c, n in zip(categories, names) if not _is_text(n)]
    _stop_if(nameless, "categories have no 'name' that is a text")
    _check_no_duplicates(names, "category names")


def _is_text(value: Any) -> bool:
    # JSON's escapes can hold halves of characters, which can be neither written nor drawn.
    return isinstance(value, str) and bool(value) and is_utf8(value)


def check_images(images: List[Dict[str, Any]]) -> None:
    if not images:
        raise UserError("'images' is empty; list the images of the folder")
    _check_ids(images, "images")
    _stop_if(
        [i["id"] for i in images if not (_is_size(i.get("height")) and _is_size(i.get("width")))],
        "images have no 'height' and 'width' that are integers above 0",
    )
    _stop_if(
        [i["id"] for i in images if not (isinstance(i.get("file_name"), str) and i["file_name"])],
        "images have no 'file_name' that is a text",
    )
    wrong = [i for i in images if not _can_be_a_name(i["file_name"])]
    _stop_if(
        [i["id"] for i in wrong],
        f"images have a 'file_name' that no file can have, {first(i['file_name'] for i in wrong)}",
    )
    _stop_if(
        [i["id"] for i in images if _leaves_folder(i["file_name"])],
        "images have a 'file_name' that leads out of the image folder; "
        "write it relative to the folder, without '..'",
    )


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value <= _MAX_SIZE


def _can_be_a_name(file_name: str) -> bool:
    # A name that is not UTF-8 has surrogates in Python, of which any other ones are a mistake.
    try:
        return b"\0" not in file_name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False


def _leaves_folder(file_name: str) -> bool:
    return os.path.isabs(file_name) or os.path.normpath(file_name).split(os.sep)[0] == os.pardir


def check_image_files(file_names: List[str], image_root: str) -> None:
    try:
        missing = find_missing(file_names, image_root)
    except NotImplementedError:  # e.g. an https:// folder, which cannot be listed
        return
    if not missing:
        return
    hint = ""
    if len(missing) == len(file_names):
        hint = "; is it the right image folder?"
    raise UserError(
        f"{len(missing)} of {len(file_names)} image files are not in {image_root} "
        f"({first(missing)}){hint}"
    )


def check_annotations(annotations: List[Dict[str, Any]], category_ids: Set[int]) -> None:
    _check_ids(annotations, "annotations")
    _stop_if(
        [a["id"] for a in annotations if type(a.get("image_id")) is not int],
        "annotations have no 'image_id' that is an integer",
    )
    _stop_if(
        [a["id"] for a in annotations if type(a.get("category_id")) is not int],
        "annotations have no 'category_id' that is an integer",
    )
    unknown = [a for a in annotations if a["category_id"] not in category_ids]
    unknown_ids = sorted({a["category_id"] for a in unknown})
    _stop_if(
        [a["id"] for a in unknown],
        f"annotations are of a category that is not in 'categories' (ids {first(unknown_ids)})",
    )
    _stop_if(
        [a["id"] for a in annotations if not _is_box(a.get("bbox"))],
        "annotations have no 'bbox' that is [x, y, width, height], four numbers",
    )
    for flag in ("iscrowd", "ignore"):
        _stop_if(
            [a["id"] for a in annotations if a.get(flag, 0) not in (0, 1)],
            f"annotations have an '{flag}' that is not 0 or 1",
        )


def _is_box(bbox: Any) -> bool:
    # Not finite ones are numbers, too: such a box is dropped.
    if not (isinstance(bbox, list) and len(bbox) == 4):
        return False
    return all(type(x) is float or (type(x) is int and is_finite(x)) for x in bbox)


def _stop_if(ids: List[int], what: str) -> None:
    if ids:
        raise UserError(f"{len(ids)} {what} ({first_ids(ids)})")
