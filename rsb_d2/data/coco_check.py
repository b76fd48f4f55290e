"""The check of one COCO-format file, and the corrected copy where one is needed.

What makes a file ambiguous or unusable (broken JSON, ids twice, unknown categories, image files
that are not there) stops with a :class:`UserError`. A single annotation that cannot be used (of
an unknown image, a box of no area or outside its image, no usable mask where masks are trained)
is dropped, and counted in one warning. What Detectron2's reader or pycocotools needs and many
files leave out (``iscrowd``, ``area``) is filled in.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import uuid
from collections import Counter
from typing import Any, Dict, Iterable, List, NamedTuple, Set, Tuple

import numpy as np
import pycocotools.mask as mask_util
from detectron2.structures.masks import polygon_area
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import get_cache_dir

from ..errors import UserError, printable
from .masks import is_finite, is_polygon, is_rle

logger = logging.getLogger(__name__)

# Pixels by which a box may reach beyond its image unnoticed: tools round differently.
_BOX_TOLERANCE = 1.0
# What fits into 64 and 32 bits, as ids and sizes have to in pycocotools and in images.
_MAX_ID = 2**63 - 1
_MAX_SIZE = 2**31 - 1
# COCOeval leaves out objects with a larger area (its areaRng), and those with one below 0.
_MAX_AREA = 1e5**2

Annotations = List[Dict[str, Any]]
Sizes = Dict[int, List[int]]  # image id: [height, width]


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
    kept, dropped = _drop_bad_boxes(annotations, sizes)
    kept, changed = _correct_masks(kept, dropped, sizes, with_masks)
    changed.update(_fill_in(kept))
    _warn(json_file, annotations, kept, dropped, sizes)
    if dropped or changed:
        content["annotations"] = kept
        original, json_file = json_file, _write_copy(content, json_file)
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
        raise UserError(f"{len(ids)} {what} ({_first_ids(ids)})")


def _first_ids(ids: List[int]) -> str:
    return f"first ids: {first(ids)}" if len(ids) > 5 else f"ids: {first(ids)}"


def _boxes_and_sizes(annotations: Annotations, sizes: Sizes) -> List[np.ndarray]:
    """Return x, y, width, height of the boxes and width, height of their images, each (N,).

    The size of an unknown image is NaN.
    """
    unknown = [math.nan, math.nan]
    boxes = np.array([a["bbox"] for a in annotations], dtype=float).reshape(-1, 4)
    images = [sizes.get(a["image_id"], unknown) for a in annotations]
    images = np.array(images, dtype=float).reshape(-1, 2)
    return [*boxes.T, images[:, 1], images[:, 0]]


def _drop_bad_boxes(
    annotations: Annotations, sizes: Sizes
) -> Tuple[Annotations, Dict[str, List[int]]]:
    """Return the annotations to keep, and the ids of the others by reason."""
    x, y, w, h, width, height = _boxes_and_sizes(annotations, sizes)
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        right, bottom = x + w, y + h
    reasons = {
        "of images that are not in 'images'": np.isnan(width),
        "with a box that is not finite": ~(np.isfinite(right) & np.isfinite(bottom)),
        "with a box of no area": (w <= 0) | (h <= 0),
        "with a box outside the image": (x >= width) | (y >= height) | (right <= 0) | (bottom <= 0),
    }
    ids = np.array([a["id"] for a in annotations])
    dropped, keep = {}, np.ones(len(annotations), dtype=bool)
    for reason, bad in reasons.items():
        if (bad & keep).any():
            dropped[reason] = ids[bad & keep].tolist()
            keep &= ~bad
    return [a for a, k in zip(annotations, keep) if k], dropped


def _correct_masks(
    annotations: Annotations, dropped: Dict[str, List[int]], sizes: Sizes, with_masks: bool
) -> Tuple[Annotations, Dict[str, int]]:
    """Take out the polygons and masks that cannot be used; with masks, the annotation too.

    Adds to ``dropped``. Returns the annotations to keep, and what changed in them by kind.
    """
    kept, without_mask, changed = [], [], Counter()
    for annotation in annotations:
        segmentation = annotation.get("segmentation")
        usable = _usable_mask(segmentation, sizes[annotation["image_id"]])
        if usable is None and with_masks:
            without_mask.append(annotation["id"])
            continue
        kept.append(annotation)
        if usable is None and segmentation:
            del annotation["segmentation"]
            changed["masks that cannot be used taken out"] += 1
        elif usable is not None and len(usable) != len(segmentation):
            annotation["segmentation"] = usable
            changed["masks without their polygons that cannot be used"] += 1
    if without_mask and not kept:
        raise UserError(
            f"no annotation has a mask that can be used ({_first_ids(without_mask)}): write "
            "MODEL.MASK_ON False, or polygons [[x, y, x, y, x, y, ...], ...] in 'segmentation'"
        )
    if without_mask:
        dropped["without a mask that can be used"] = without_mask
    return kept, changed


def _usable_mask(segmentation: Any, size: List[int]) -> Any:
    """Return the polygons, or the RLE, that can be used; None if there are none."""
    if isinstance(segmentation, dict):
        return segmentation if is_rle(segmentation, size) else None
    if isinstance(segmentation, list):
        return [polygon for polygon in segmentation if is_polygon(polygon, size)] or None
    return None


def _fill_in(annotations: Annotations) -> Dict[str, int]:
    """Give each annotation what the readers need, in place. Returns how often, by kind."""
    changed = Counter()
    next_id = max([a["id"] for a in annotations], default=0) + 1
    for annotation in annotations:
        if annotation["id"] <= 0:  # COCOeval takes an object of id 0 for one that was not found
            annotation["id"] = max(next_id, 1)
            next_id = annotation["id"] + 1
            changed["ids made positive"] += 1
        if "iscrowd" not in annotation:
            annotation["iscrowd"] = 0
            changed["'iscrowd' set to 0"] += 1
        if annotation.pop("ignore", 0):  # which load_coco_json refuses and COCOeval overlooks
            annotation["iscrowd"] = 1
            changed["with 'ignore' made crowds"] += 1
        area = annotation.get("area")
        if not (is_finite(area) and 0 <= area <= _MAX_AREA):
            annotation["area"] = min(_area(annotation), _MAX_AREA)
            changed["'area' filled in"] += 1
        if "keypoints" in annotation and not _are_keypoints(annotation["keypoints"]):
            del annotation["keypoints"]
            changed["keypoints that cannot be used taken out"] += 1
    return changed


def _are_keypoints(keypoints: Any) -> bool:
    """Whether this is [x, y, visibility, ...], all finite."""
    return (
        isinstance(keypoints, list) and len(keypoints) % 3 == 0 and all(map(is_finite, keypoints))
    )


def _area(annotation: Dict[str, Any]) -> float:
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return annotation["bbox"][2] * annotation["bbox"][3]
    if isinstance(segmentation, list):
        return float(sum(polygon_area(p[0::2], p[1::2]) for p in segmentation))
    if isinstance(segmentation["counts"], list):
        return sum(segmentation["counts"][1::2])
    return int(mask_util.area(segmentation))


def _warn(
    json_file: str,
    annotations: Annotations,
    kept: Annotations,
    dropped: Dict[str, List[int]],
    sizes: Sizes,
) -> None:
    """Log what was dropped, and which boxes are kept although part of them is not in the image."""
    if dropped:
        reasons = "; ".join(f"{len(ids)} {why} ({_first_ids(ids)})" for why, ids in dropped.items())
        logger.warning(
            f"{json_file}: dropped {len(annotations) - len(kept)} of {len(annotations)} "
            f"annotations: {reasons}"
        )
    beyond = _boxes_beyond_image(kept, sizes)
    if beyond:
        hint = "; is 'bbox' [x, y, width, height]?" if len(beyond) > len(kept) / 2 else ""
        logger.warning(
            f"{json_file}: {len(beyond)} of {len(kept)} boxes reach beyond their image "
            f"({_first_ids(beyond)}); training clips them, evaluation does not{hint}"
        )


def _boxes_beyond_image(annotations: Annotations, sizes: Sizes) -> List[int]:
    x, y, w, h, width, height = _boxes_and_sizes(annotations, sizes)
    t = _BOX_TOLERANCE
    beyond = (x < -t) | (y < -t) | (x + w > width + t) | (y + h > height + t)
    return [a["id"] for a, b in zip(annotations, beyond) if b]


def _write_copy(content: Dict[str, Any], json_file: str) -> str:
    """Write to the cache folder, under a name made from the content. Returns the path."""
    text = json.dumps(content)
    folder = os.path.join(get_cache_dir(), "rsb_d2", "coco_json")
    stem = os.path.splitext(os.path.basename(json_file))[0]
    path = os.path.join(folder, f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json")
    if os.path.exists(path):
        return path
    # Written aside and then renamed, since another process may write or read the same file.
    aside = f"{path}.{uuid.uuid4().hex}"
    try:
        os.makedirs(folder, exist_ok=True)
        with open(aside, "w") as f:
            f.write(text)
        os.replace(aside, path)
    except OSError as e:
        with contextlib.suppress(OSError):
            os.remove(aside)
        raise UserError(
            f"needs a corrected copy, which cannot be written to {folder} ({e.strerror}); make "
            "room there, or name another folder in the environment variable FVCORE_CACHE"
        ) from None
    return path


def first(values: Iterable[Any], count: int = 5) -> str:
    """Return the first values as text for a message: "3, 5, 8, 9, 12, ..."."""
    values = list(values)
    return ", ".join(printable(str(v)) for v in values[:count]) + (
        ", ..." if len(values) > count else ""
    )
