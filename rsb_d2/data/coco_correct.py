"""The annotations of a COCO-format file as the readers need them: what is dropped, what filled in.

What :mod:`rsb_d2.data.coco_check` does not stop at.
"""

import math
from collections import Counter
from typing import Any, Dict, Iterator, List, Tuple

import numpy as np
import pycocotools.mask as mask_util
from detectron2.structures.masks import polygon_area

from ..errors import UserError, first_ids
from .masks import is_finite, is_polygon, is_rle

# Pixels by which a box may reach beyond its image unnoticed: tools round differently.
_BOX_TOLERANCE = 1.0
# COCOeval leaves out objects with a larger area (its areaRng), and those with one below 0.
_MAX_AREA = 1e5**2

Annotations = List[Dict[str, Any]]
Sizes = Dict[int, List[int]]  # image id: [height, width]


def _boxes_and_sizes(annotations: Annotations, sizes: Sizes) -> List[np.ndarray]:
    """Return x, y, width, height of the boxes and width, height of their images, each (N,).

    The size of an unknown image is NaN.
    """
    unknown = [math.nan, math.nan]
    boxes = np.array([a["bbox"] for a in annotations], dtype=float).reshape(-1, 4)
    images = [sizes.get(a["image_id"], unknown) for a in annotations]
    images = np.array(images, dtype=float).reshape(-1, 2)
    return [*boxes.T, images[:, 1], images[:, 0]]


def drop_bad_boxes(
    annotations: Annotations, sizes: Sizes
) -> Tuple[Annotations, Dict[str, List[int]]]:
    """Return the annotations to keep, and the ids of the others by reason, all reasons named."""
    x, y, w, h, width, height = _boxes_and_sizes(annotations, sizes)
    with np.errstate(invalid="ignore", over="ignore"):  # infinity minus infinity
        right, bottom = x + w, y + h
    reasons = {
        "of images that are not in 'images'": np.isnan(width),
        "with a box that is not finite": ~(np.isfinite(right) & np.isfinite(bottom)),
        "with a box of no area": (w <= 0) | (h <= 0),
        "with a box outside the image": (x >= width) | (y >= height) | (right <= 0) | (bottom <= 0),
    }
    dropped, keep = {}, np.ones(len(annotations), dtype=bool)
    for reason, bad in reasons.items():
        dropped[reason] = [annotations[i]["id"] for i in np.flatnonzero(bad & keep)]
        keep &= ~bad
    if keep.all():
        return annotations, dropped
    return [a for a, k in zip(annotations, keep) if k], dropped


def correct_masks(
    annotations: Annotations, sizes: Sizes, with_masks: bool
) -> Tuple[Annotations, List[int], Dict[str, int]]:
    """Take out the polygons and masks that cannot be used; with masks, the annotation too.

    Returns the annotations to keep, the ids of the others, and what changed in those that are kept
    by kind.
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
    return kept, without_mask, changed


def _usable_mask(segmentation: Any, size: List[int]) -> Any:
    """Return the polygons, or the RLE, that can be used; None if there are none."""
    if isinstance(segmentation, dict):
        return segmentation if is_rle(segmentation, size) else None
    if isinstance(segmentation, list):
        return [polygon for polygon in segmentation if is_polygon(polygon, size)] or None
    return None


def fill_in(
    annotations: Annotations, new_ids: Iterator[int], num_keypoints: Dict[int, int | None]
) -> Dict[str, int]:
    """Give each annotation what the readers need, in place. Returns how often, by kind.

    The new ids, above 0 and those of all annotations, are for annotations without one above 0.
    The numbers of keypoints are those of the categories, None where a category has any.
    """
    changed = Counter()
    for annotation in annotations:
        if annotation["id"] <= 0:  # COCOeval takes an object of id 0 for one that was not found
            annotation["id"] = next(new_ids)
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
        number = num_keypoints[annotation["category_id"]]
        if "keypoints" in annotation and not _are_keypoints(annotation["keypoints"], number):
            del annotation["keypoints"]
            changed["keypoints that cannot be used taken out"] += 1
    return changed


def _are_keypoints(keypoints: Any, number: int | None) -> bool:
    """Whether this is [x, y, visibility, ...], all finite, for none or so many keypoints."""
    if not isinstance(keypoints, list) or not all(map(is_finite, keypoints)):
        return False
    return len(keypoints) % 3 == 0 if number is None else len(keypoints) in (0, 3 * number)


def _area(annotation: Dict[str, Any]) -> float:
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return annotation["bbox"][2] * annotation["bbox"][3]
    if isinstance(segmentation, list):
        return float(sum(polygon_area(p[0::2], p[1::2]) for p in segmentation))
    if isinstance(segmentation["counts"], list):
        return sum(segmentation["counts"][1::2])
    return int(mask_util.area(segmentation))


def describe_dropped(dropped: Dict[str, List[int]], num_annotations: int) -> str:
    """The warning about annotations that are dropped: how many, why, and their ids."""
    reasons = "; ".join(
        f"{len(ids)} {why} ({first_ids(ids)})" for why, ids in dropped.items() if ids
    )
    return f"dropped {sum(map(len, dropped.values()))} of {num_annotations} annotations: {reasons}"


def describe_beyond(ids: List[int], num_kept: int) -> str:
    """The warning about boxes that are kept although part of them is not in the image."""
    hint = "; is 'bbox' [x, y, width, height]?" if len(ids) > num_kept / 2 else ""
    return (
        f"{len(ids)} of {num_kept} boxes reach beyond their image ({first_ids(ids)}); "
        f"training clips them, evaluation does not{hint}"
    )


def stop_without_masks(ids: List[int]) -> None:
    """Raise the error for a file without one mask that can be used."""
    raise UserError(
        f"no annotation has a mask that can be used ({first_ids(ids)}): write "
        "MODEL.MASK_ON False, or polygons [[x, y, x, y, x, y, ...], ...] in 'segmentation'"
    )


def boxes_beyond_image(annotations: Annotations, sizes: Sizes) -> List[int]:
    x, y, w, h, width, height = _boxes_and_sizes(annotations, sizes)
    t = _BOX_TOLERANCE
    beyond = (x < -t) | (y < -t) | (x + w > width + t) | (y + h > height + t)
    return [a["id"] for a, b in zip(annotations, beyond) if b]
