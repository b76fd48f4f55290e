"""The check of one COCO-format file, and the corrected copy where one is needed.

What makes a file ambiguous or unusable (broken JSON, ids twice, unknown categories, image files
that are not there) stops with a :class:`UserError`. A single annotation that cannot be used (of
an unknown image, a box of no area or outside its image, no usable mask where masks are trained)
is dropped, and counted in one warning. What Detectron2's reader or pycocotools needs and many
files leave out (``iscrowd``, ``area``) is filled in.
"""

import json
import logging
import os
from collections import Counter
from typing import Any, Dict, List, NamedTuple, Set

from detectron2.utils.file_io import PathManager

from ..errors import UserError, first, first_ids
from .coco_correct import correct_masks, drop_bad_boxes, fill_in, warn_of_boxes, write_copy
from .masks import is_finite

logger = logging.getLogger(__name__)

# What fits into 64 and 32 bits, as ids and sizes have to in pycocotools and in images.
_MAX_ID = 2**63 - 1
_MAX_SIZE = 2**31 - 1


class CheckedCocoJson(NamedTuple):
    """What the check of a COCO-format file found.

    Args:
        json_file (str): the file to read: the user's, or a corrected copy of it.
        category_names (List[str]): in the order of their ids.
        category_ids (List[int]): ascending.
        num_objects (int): the annotations that can be learned or found: all but crowds.
        num_rle_objects (int): those of them whose mask is an RLE, not polygons.
    """

    json_file: str
    category_names: List[str]
    category_ids: List[int]
    num_objects: int
    num_rle_objects: int


def check_coco_json(json_file: str, image_root: str, *, with_masks: bool) -> CheckedCocoJson:
    """Check a COCO-format file and its image folder; write a corrected copy if one is needed.

    Args:
        json_file (str): annotation file.
        image_root (str): image folder.
        with_masks (bool): whether an annotation without a usable mask is to be dropped. If not,
            it keeps its box and loses the mask.

    Returns:
        CheckedCocoJson: what to read, and what is in it.

    Raises:
        UserError: if the files cannot be used; the message does not name the annotation file.
    """
    content = _read_json(json_file)
    categories = _records(content, "categories")
    images = _records(content, "images")
    annotations = _records(content, "annotations")
    _check_categories(categories)
    _check_images(images)
    _check_image_files([image["file_name"] for image in images], image_root)
    _check_annotations(annotations, {category["id"] for category in categories})

    sizes = {image["id"]: [image["height"], image["width"]] for image in images}
    kept, dropped = drop_bad_boxes(annotations, sizes)
    kept, changed = correct_masks(kept, dropped, sizes, with_masks)
    changed.update(fill_in(kept))
    warn_of_boxes(json_file, annotations, kept, dropped, sizes)
    if dropped or changed:
        content["annotations"] = kept
        original, json_file = json_file, write_copy(content, json_file)
        counts = ", ".join(f"{count} {what}" for what, count in changed.items())
        logger.info(f"{original}: training and evaluation read {json_file}: {counts or 'the rest'}")

    categories = sorted(categories, key=lambda category: category["id"])
    objects = [a for a in kept if not a["iscrowd"]]
    return CheckedCocoJson(
        json_file=json_file,
        category_names=[category["name"] for category in categories],
        category_ids=[category["id"] for category in categories],
        num_objects=len(objects),
        num_rle_objects=sum(isinstance(a.get("segmentation"), dict) for a in objects),
    )


def _read_json(json_file: str) -> Dict[str, Any]:
    try:
        with PathManager.open(json_file, "rb") as f:
            content = json.loads(f.read().decode("utf-8"))
    except OSError as e:
        raise UserError(f"cannot be read: {e}") from None
    except UnicodeDecodeError:
        raise UserError("is not UTF-8 text; save it as JSON in UTF-8") from None
    except ValueError as e:  # JSONDecodeError, and of a number of more digits than Python takes
        raise UserError(f"is not valid JSON: {e}") from None
    except RecursionError:
        raise UserError("is not in COCO's format: its lists are nested too deeply") from None
    if not isinstance(content, dict):
        raise UserError(
            "is not in COCO's format: at the top there must be an object with the keys "
            f"'images', 'annotations' and 'categories', not a {type(content).__name__}"
        )
    return content


def _records(content: Dict[str, Any], key: str) -> List[Dict[str, Any]]:
    if key not in content:
        raise UserError(f"is not in COCO's format: there is no key '{key}'")
    records = content[key]
    if not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
        raise UserError(f"is not in COCO's format: '{key}' must be a list of objects")
    return records


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


def _check_categories(categories: List[Dict[str, Any]]) -> None:
    if not categories:
        raise UserError("'categories' is empty; list the categories with their ids and names")
    _check_ids(categories, "categories")
    names = [category.get("name") for category in categories]
    nameless = [c["id"] for c, n in zip(categories, names) if not isinstance(n, str) or not n]
    _stop_if(nameless, "categories have no 'name' that is a text")
    _check_no_duplicates(names, "category names")


def _check_images(images: List[Dict[str, Any]]) -> None:
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
    _stop_if(
        [i["id"] for i in images if _leaves_folder(i["file_name"])],
        "images have a 'file_name' that leads out of the image folder; "
        "write it relative to the folder, without '..'",
    )


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value <= _MAX_SIZE


def _leaves_folder(file_name: str) -> bool:
    return os.path.isabs(file_name) or os.path.normpath(file_name).split(os.sep)[0] == os.pardir


def _check_image_files(file_names: List[str], image_root: str) -> None:
    try:
        missing = _find_missing(file_names, image_root)
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


def _find_missing(file_names: List[str], image_root: str) -> List[str]:
    # One listing a folder, not one look a file: on a network file system the latter takes minutes.
    listings: Dict[str, Set[str]] = {}
    missing = []
    for file_name in file_names:
        folder, name = os.path.split(os.path.join(image_root, file_name))
        if folder not in listings:
            listings[folder] = _list_folder(folder)
        # The second look is for file systems that do not tell A.jpg from a.jpg.
        if name not in listings[folder] and not PathManager.isfile(os.path.join(folder, name)):
            missing.append(file_name)
    return missing


def _list_folder(folder: str) -> Set[str]:
    try:
        return set(PathManager.ls(folder))
    except (OSError, ValueError):  # the latter for a name that no file can have
        return set()


def _check_annotations(annotations: List[Dict[str, Any]], category_ids: Set[int]) -> None:
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
