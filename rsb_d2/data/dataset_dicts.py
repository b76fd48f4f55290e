"""Dataset dicts that a script registers, in the types that Detectron2's functions compute with.

Detectron2's documentation of dataset dicts
(https://detectron2.readthedocs.io/en/latest/tutorials/datasets.html) leaves the types of most
fields open, and its functions differ in the types that they accept: NumPy's scalars and arrays,
paths and missing fields pass in training and fail in the evaluation, or the other way around.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Callable, Dict, List

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode
from torch.utils.data import Dataset, IterableDataset

from ..errors import UserError, first, printable
from .masks import is_finite, is_polygon, is_rle

_NOT_RECORDS = (Mapping, str, bytes, IterableDataset)
_PATHS = ("file_name", "sem_seg_file_name", "pan_seg_file_name")


def load_dicts(name: str) -> List[Dict[str, Any]] | Dataset:
    """Return the standardized dataset dicts of a registered data set (:func:`standardize`).

    The items of a ``torch.utils.data.Dataset`` are made when they are used.

    Raises:
        UserError: if the registered function returns anything but a sized collection of dicts, or
            an empty one.
    """
    records = DatasetCatalog.get(name)
    if not hasattr(records, "__len__") or isinstance(records, _NOT_RECORDS):
        raise UserError(
            f"data set {name}: the function registered for it returns a "
            f"{type(records).__name__}; return a list of dicts"
        )
    if not len(records):
        raise UserError(f"data set {name} is empty: the function registered for it returns no dict")
    if isinstance(records, Dataset):
        return records
    is_iterable = hasattr(records, "__iter__")
    records = list(records) if is_iterable else [records[i] for i in range(len(records))]
    wrong = next((i for i, r in enumerate(records) if not isinstance(r, Mapping)), None)
    if wrong is not None:
        raise UserError(
            f"data set {name}: item {wrong} is a {type(records[wrong]).__name__}, not a dict in "
            "Detectron2's dataset format"
        )
    return [standardize(record) for record in records]


def standardize(record: Mapping) -> Dict[str, Any]:
    """Return a dataset dict with the types that Detectron2's functions compute with.

    Paths are strings; sizes, ids, classes and flags are Python's numbers and strings, boxes and
    keypoints flat lists, polygons lists of flat lists, and masks in an array or in uncompressed RLE
    are compressed RLE. ``None`` in a field counts as a missing field. Values without such a form
    are kept; :func:`annotation_reason` and :func:`mask_reason` report them.
    """
    record = dict(record)
    for key in _PATHS:
        if isinstance(record.get(key), (os.PathLike, bytes)):
            record[key] = os.fsdecode(record[key])
    image_id = plain(record.pop("image_id", None))
    if image_id is not None:
        record["image_id"] = image_id
    size = {key: whole_number(record.pop(key, None)) for key in ("height", "width")}
    if None not in size.values():  # otherwise that of the image file
        record.update(size)
    if "annotations" in record:
        annotations = record["annotations"]
        record["annotations"] = [
            _standardize_annotation(a) for a in (() if annotations is None else annotations)
        ]
    return record


def _standardize_annotation(annotation: Mapping) -> Dict[str, Any]:
    annotation = dict(annotation)
    for key, convert in _CONVERSIONS.items():
        value = annotation.pop(key, None)
        if value is not None:
            annotation[key] = convert(value)
    return annotation


def plain(value: Any) -> Any:
    """A single number or text of NumPy or torch as Python's own."""
    if isinstance(value, np.generic) or (
        isinstance(value, (np.ndarray, torch.Tensor)) and value.ndim == 0
    ):
        return value.item()
    return value


def whole_number(value: Any) -> Any:
    """Return an integer of any type as an ``int``, and anything else unchanged."""
    value = plain(value)
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    is_whole = isinstance(value, (bool, float)) and value == value // 1
    return int(value) if is_whole else value


def _box_mode(value: Any) -> Any:
    value = plain(value)
    try:
        return BoxMode(value)
    except ValueError:
        return value


def _flat(values: Any) -> Any:
    """Numbers in an array, a list or rows as one list of Python's numbers, row after row."""
    try:
        array = np.asarray(values)
    except ValueError:  # rows of different lengths
        return values
    return array.ravel().tolist() if array.dtype.kind in "iufb" else values


def _box(values: Any) -> Any:
    if isinstance(values, (np.ndarray, torch.Tensor)):
        return values.tolist()
    return list(map(plain, values)) if isinstance(values, (list, tuple)) else values


def _mask(mask: Any) -> Any:
    if isinstance(mask, torch.Tensor):
        mask = mask.numpy()
    if isinstance(mask, np.ndarray) and mask.ndim == 2:
        return mask_util.encode(np.asfortranarray(mask != 0).astype(np.uint8, order="F"))
    if isinstance(mask, dict):
        mask = dict(mask)  # its string may be replaced later
        if "size" in mask:
            mask["size"] = _flat(mask["size"])
        if isinstance(mask.get("counts"), list) and is_rle(mask, mask["size"], may_be_empty=True):
            return mask_util.frPyObjects(mask, *mask["size"])
        return mask
    if isinstance(mask, (list, tuple)):
        is_polygons = all(isinstance(p, (list, tuple, np.ndarray, torch.Tensor)) for p in mask)
        return [_flat(polygon) for polygon in mask] if is_polygons else mask
    return mask


_CONVERSIONS: Dict[str, Callable[[Any], Any]] = {
    "bbox": _box,
    "bbox_mode": _box_mode,
    "category_id": whole_number,
    "iscrowd": whole_number,
    "keypoints": _flat,
    "segmentation": _mask,
}


def fill_image_ids(records: Iterable[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """Return standardized records, each with an ``image_id``, by default its position."""
    return [{"image_id": place, **record} for place, record in enumerate(records)]


def count_visible_keypoints(record: Dict[str, Any]) -> int:
    """Return how many keypoints of the objects of an image have a visibility above 0."""
    lists = (a.get("keypoints") for a in record["annotations"])
    visible = (v for keypoints in lists if isinstance(keypoints, list) for v in keypoints[2::3])
    return sum(is_finite(v) and v > 0 for v in visible)


# ---- unusable objects ----


def annotation_reason(annotation: Dict[str, Any]) -> str | None:
    """Return why an object cannot be trained on: its unusable part; None if it can."""
    box, mode = annotation.get("bbox"), annotation.get("bbox_mode")
    length, words = (5, "five") if mode == BoxMode.XYWHA_ABS else (4, "four")
    is_box = isinstance(box, list) and len(box) == length
    if not (is_box and all(map(is_finite, box))):
        return f"the box {box}, which is not of {words} finite numbers"
    if not isinstance(mode, BoxMode):
        return f"the bbox_mode {mode!r}, which is not one of detectron2.structures.BoxMode"
    if mode in (BoxMode.XYXY_REL, BoxMode.XYWH_REL):
        return f"a box in {mode.name}, which Detectron2 does not support: write BoxMode.XYXY_ABS"
    category = annotation.get("category_id")
    if type(category) is not int or category < 0:
        return f"the class {category}, which is not a class index"
    return None


def mask_reason(annotation: Dict[str, Any], size: List[int], mask_format: str) -> str | None:
    """Return why the mask of an object cannot be used, or None.

    Args:
        annotation (dict): standardized.
        size (list[int]): height and width of the image, in pixels.
        mask_format (str): ``"polygon"`` or ``"bitmask"``, as ``INPUT.MASK_FORMAT``.
    """
    mask = annotation.get("segmentation")
    if isinstance(mask, list) and mask:
        if all(is_polygon(polygon, size) for polygon in mask):
            return None
        return "a polygon that is not of three points or more, in or near the image"
    if isinstance(mask, dict):
        if mask_format == "polygon":
            return "a mask in RLE: write INPUT.MASK_FORMAT bitmask"
        return None if is_rle(mask, size) else f"an RLE mask that does not fit {size} (h, w)"
    return "no mask"


def keypoint_reason(annotation: Dict[str, Any], num_keypoints: int) -> str | None:
    """Return why the keypoints of an object cannot be used, or None, also for no keypoints."""
    keypoints = annotation.get("keypoints") or []
    if not (isinstance(keypoints, list) and all(map(is_finite, keypoints))):
        return f"the keypoints {keypoints}, which are not finite numbers"
    if len(keypoints) in (0, 3 * num_keypoints):
        return None
    return (
        f"{len(keypoints)} numbers in its keypoints, not the 3 x {num_keypoints} of x, y and "
        "visibility of each"
    )


def check_classes(names: Sequence, records: Sequence, class_names: List[str]) -> None:
    """Check that each class index in standardized records has a name."""
    for record in records:
        for annotation in record["annotations"]:
            category = annotation.get("category_id")
            if type(category) is int and not 0 <= category < len(class_names):
                raise UserError(
                    f"data set {first(names)}: {printable(str(record.get('file_name')))} has an "
                    f"object of class {category}, but there are {len(class_names)} thing_classes "
                    f"({first(class_names)}), with the indices 0 to {len(class_names) - 1}"
                )
