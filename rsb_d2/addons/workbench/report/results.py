"""A results file of Detectron2's ``COCOEvaluator``, checked against its data set.

hotcoco's ``load_res`` accepts unknown images and categories, and masks of another size.
"""

import json
from typing import Any, Dict, List

import numpy as np

from ....data.masks import is_finite, is_rle
from ....errors import UserError, first
from ....files import path_manager
from .source import Source

# Pixels by which a box may extend beyond its image before it indicates another data set.
_BOX_TOLERANCE = 2.0


class Results:
    """N detections, in the order of the file.

    Args:
        records (list[dict]): from :func:`read_results`.
        source (Source): their data set.
        path (str): their file, for messages.

    Attributes:
        records (list[dict]): in COCO's results format.
        image (ndarray): (N,) index into ``Source.images``.
        label (ndarray): (N,) index into ``Source.class_names``.
        score (ndarray): (N,).
        tasks (list[str]): ``"bbox"``, ``"segm"``: those that can be evaluated.
        warnings (list[str]): unusual properties of the results.

    Raises:
        UserError: if they are results of another data set, or of other classes.
    """

    def __init__(self, records: List[Dict[str, Any]], source: Source, path: str = ""):
        image_index = {image["id"]: i for i, image in enumerate(source.images)}
        unknown = [r["image_id"] for r in records if r["image_id"] not in image_index]
        if unknown:
            raise UserError(
                f"{path}: {len(unknown)} of {len(records)} results are of images that are not in "
                f"{source.name} (ids {first(dict.fromkeys(unknown))}); it is a results file of "
                "another data set"
            )
        unknown = {
            r["category_id"]: None for r in records if r["category_id"] not in source.class_of
        }
        if unknown:
            count = sum(r["category_id"] in unknown for r in records)
            are_indices = {r["category_id"] for r in records} <= set(range(len(source.class_of)))
            raise UserError(
                f"{path}: {count} of {len(records)} results are of classes that {source.name} does "
                f"not have (category ids {first(unknown)}; it has {first(source.class_of)}); "
                + (
                    "they look like a model's own class indices: map them to the category ids"
                    if are_indices
                    else "are they results of a model with other classes?"
                )
            )
        self.records = records
        self.image = np.array([image_index[r["image_id"]] for r in records], dtype=np.int64)
        self.label = np.array([source.class_of[r["category_id"]] for r in records], dtype=np.int64)
        self.score = np.array([r["score"] for r in records], dtype=np.float64)
        with_boxes, with_masks = (_all_have(records, k, path) for k in ("bbox", "segmentation"))
        self.tasks = ["bbox"] * (with_boxes or not records) + ["segm"] * with_masks
        if with_masks:
            for i, record in enumerate(records):
                _check_mask(record["segmentation"], i, source.images[self.image[i]], path)
        self.warnings = self._warn(source, with_boxes)

    def _warn(self, source: Source, with_boxes: bool) -> List[str]:
        if not self.records:
            return ["The results file holds no detection at all."]
        warnings = []
        without = len(source.images) - len(np.unique(self.image))
        if without:
            warnings.append(f"{without} of {len(source.images)} images have no detection.")
        if with_boxes:
            boxes = np.array([r["bbox"] for r in self.records], dtype=np.float64)
            sizes = np.array([[i["width"], i["height"]] for i in source.images])[self.image]
            low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
            beyond = ((low < -_BOX_TOLERANCE) | (high > sizes + _BOX_TOLERANCE)).any(axis=1).sum()
            if beyond > 0.02 * len(boxes):
                warnings.append(
                    f"{beyond} of {len(boxes)} detected boxes reach beyond their image; "
                    "are they results of another data set with the same ids?"
                )
        return warnings


def read_results(path: str) -> List[Dict[str, Any]]:
    """Read a results file.

    Args:
        path (str): a JSON list of ``{"image_id", "category_id", "score", "bbox", "segmentation"}``.

    Returns:
        list[dict]: each with an image, a category, a finite score, and a box or a mask.

    Raises:
        UserError: if it is not such a file.
    """
    try:
        with path_manager(path).open(path, "rb") as f:
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


def _all_have(records: List[Dict[str, Any]], key: str, path: str) -> bool:
    count = sum(key in r for r in records)
    if 0 < count < len(records):
        raise UserError(f"{path}: only {count} of {len(records)} results have a '{key}'")
    return count > 0


def _check_mask(mask: Any, position: int, image: Dict[str, Any], path: str) -> None:
    where, size = f"{path}: the result at position {position}", [image["height"], image["width"]]
    if not isinstance(mask, dict) or not isinstance(mask.get("counts"), (str, list)):
        raise UserError(f"{where} has a mask that is not an RLE")
    if mask.get("size") != size:
        raise UserError(
            f"{where} has a mask of size {mask.get('size')}, but its image {image['file_name']} "
            f"has {size}; is it of another data set?"
        )
    if not is_rle(mask, size, may_be_empty=True):
        raise UserError(
            f"{where} has a mask whose 'counts' do not add up to {size[0]} x {size[1]} pixels; is "
            "the file damaged?"
        )
