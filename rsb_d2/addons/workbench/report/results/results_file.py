"""A results JSON as Detectron2's ``COCOEvaluator`` writes it, checked against its data set."""

import json
from collections import Counter
from typing import Any, Dict, List, NamedTuple

import numpy as np
import pycocotools.mask as mask_util
from detectron2.utils.file_io import PathManager

from .....data.masks import is_finite, is_rle
from .....errors import UserError
from ..source import Source

# Pixels by which a box may reach beyond its image before it is a sign of another data set.
_BOX_TOLERANCE = 2.0


class Results(NamedTuple):
    """N detections, in the order of the file.

    Args:
        image (np.ndarray): (N,) of int, index into ``Source.images``.
        label (np.ndarray): (N,) of int, index into ``Source.class_names``.
        score (np.ndarray): (N,) of float.
        boxes (np.ndarray): (N, 4) as x, y, width, height in pixels; None if the file has none.
        masks (list[dict]): compressed RLEs; None if the file has none.
        warnings (list[str]): what is odd about them.
    """

    image: np.ndarray
    label: np.ndarray
    score: np.ndarray
    boxes: np.ndarray | None
    masks: List[Dict[str, Any]] | None
    warnings: List[str]

    @property
    def tasks(self) -> List[str]:
        """``"bbox"``, ``"segm"``: what can be evaluated."""
        if not len(self.score):
            return ["bbox"]
        return ["bbox"] * (self.boxes is not None) + ["segm"] * (self.masks is not None)


def read_results(path: str) -> List[Dict[str, Any]]:
    """Read a results file.

    Args:
        path (str): a JSON list of ``{"image_id", "category_id", "score", "bbox", "segmentation"}``.

    Returns:
        list[dict]: of which each has an image, a category and a finite score.

    Raises:
        UserError: if it is not such a file.
    """
    try:
        with PathManager.open(path, "rb") as f:
            records = json.loads(f.read().decode("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such results file") from None
    except OSError as e:
        raise UserError(f"{path}: cannot be read: {e.strerror or e}") from None
    except ValueError:
        raise UserError(
            f"{path}: is not JSON; name the coco_instances_results.json of an evaluation"
        ) from None
    if not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
        what = "an annotation file" if isinstance(records, dict) and "images" in records else "it"
        raise UserError(
            f"{path}: {what} is not a results file, which is a list: "
            '[{"image_id": 1, "category_id": 1, "bbox": [x, y, w, h], "score": 0.9}, ...]'
        )
    for i, record in enumerate(records):
        problem = _problem(record)
        if problem:
            raise UserError(f"{path}: the result at position {i} has {problem}")
    return records


def _problem(record: Dict[str, Any]) -> str:
    for key in ("image_id", "category_id"):
        if type(record.get(key)) is not int:
            return f"no '{key}' that is an integer"
    if not is_finite(record.get("score")):
        return "no 'score' that is a finite number"
    if "bbox" not in record and "segmentation" not in record:
        return "neither 'bbox' nor 'segmentation'"
    bbox = record.get("bbox", [0, 0, 1, 1])
    if not (isinstance(bbox, list) and len(bbox) == 4 and all(map(is_finite, bbox))):
        return "no 'bbox' that is [x, y, width, height], four finite numbers"
    return ""


def match_to_source(records: List[Dict[str, Any]], source: Source, path: str) -> Results:
    """Find the images and classes of results in their data set.

    Args:
        records (list[dict]): from :func:`read_results`.
        source (Source): what they are said to be results of.
        path (str): where they are from, for messages.

    Returns:
        Results

    Raises:
        UserError: if they are of another data set, or of other classes.
    """
    image_index = {image["id"]: i for i, image in enumerate(source.images)}
    unknown = [r["image_id"] for r in records if r["image_id"] not in image_index]
    if unknown:
        raise UserError(
            f"{path}: {len(unknown)} of {len(records)} results are of images that are not in "
            f"{source.name} (ids {_first(unknown)}); it is a results file of another data set"
        )
    label_index = {category_id: i for i, category_id in enumerate(source.category_ids)}
    unknown = [r["category_id"] for r in records if r["category_id"] not in label_index]
    if unknown:
        raise UserError(
            f"{path}: {len(unknown)} of {len(records)} results are of classes that {source.name} "
            f"does not have (category ids {_first(unknown)}; it has {_first(source.category_ids)})"
            + _hint(records, source)
        )
    image = np.array([image_index[r["image_id"]] for r in records], dtype=np.int64)
    boxes = None
    if _all_have(records, "bbox", path):
        boxes = np.array([r["bbox"] for r in records], dtype=np.float64).reshape(-1, 4)
    masks = None
    if _all_have(records, "segmentation", path):
        masks = [_rle(r, i, source.images[image[i]], path) for i, r in enumerate(records)]
    return Results(
        image=image,
        label=np.array([label_index[r["category_id"]] for r in records], dtype=np.int64),
        score=np.array([r["score"] for r in records], dtype=np.float64),
        boxes=boxes,
        masks=masks,
        warnings=_warn(records, source, image, boxes),
    )


def _hint(records: List[Dict[str, Any]], source: Source) -> str:
    ids = {r["category_id"] for r in records}
    if ids <= set(range(len(source.category_ids))):
        return "; they look like a model's own class indices: map them to the category ids"
    return "; are they results of a model with other classes?"


def _all_have(records: List[Dict[str, Any]], key: str, path: str) -> bool:
    count = sum(key in r for r in records)
    if 0 < count < len(records):
        raise UserError(f"{path}: only {count} of {len(records)} results have a '{key}'")
    return count > 0


def _rle(record: Dict[str, Any], position: int, image: Dict[str, Any], path: str) -> Dict[str, Any]:
    mask, size = record["segmentation"], [image["height"], image["width"]]
    if not isinstance(mask, dict) or not isinstance(mask.get("counts"), (str, list)):
        raise UserError(f"{path}: the result at position {position} has a mask that is no RLE")
    if mask.get("size") != size:
        raise UserError(
            f"{path}: the result at position {position} has a mask of size {mask.get('size')}, "
            f"but its image {image['file_name']} has {size}; is it of another data set?"
        )
    if not is_rle(mask, size, may_be_empty=True):
        raise UserError(
            f"{path}: the result at position {position} has a mask whose 'counts' do not add up to "
            f"{size[0]} x {size[1]} pixels; is the file damaged?"
        )
    return mask if isinstance(mask["counts"], str) else mask_util.frPyObjects(mask, *size)


def _warn(
    records: List[Dict[str, Any]], source: Source, image: np.ndarray, boxes: np.ndarray | None
) -> List[str]:
    if not records:
        return ["The results file holds no detection at all."]
    warnings = []
    without = len(source.images) - len(set(image.tolist()))
    if without:
        warnings.append(f"{without} of {len(source.images)} images have no detection.")
    if boxes is not None:
        size = np.array([[i["width"], i["height"]] for i in source.images], dtype=float)[image]
        low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
        beyond = ((low < -_BOX_TOLERANCE) | (high > size + _BOX_TOLERANCE)).any(axis=1).sum()
        if beyond > 0.02 * len(boxes):
            warnings.append(
                f"{beyond} of {len(boxes)} detected boxes reach beyond their image; "
                "are they results of another data set with the same ids?"
            )
    return warnings


def _first(values: List[int], count: int = 5) -> str:
    values = [value for value, _ in Counter(values).most_common()]
    return ", ".join(map(str, values[:count])) + (", ..." if len(values) > count else "")
