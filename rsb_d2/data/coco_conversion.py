"""A data set that a script registers, as a file in COCO's format, for its evaluation."""

import json
import os
from typing import Any, Dict, List

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.structures import BoxMode
from torch.utils.data import Dataset

from ..errors import UserError, printable
from ..files import whole_file
from .dataset_dicts import fill_image_ids, load_dicts, mask_reason, standardize, whole_number
from .images import image_size


def convert_to_coco_file(name: str, path: str, *, with_masks: bool = False) -> None:
    """Write a data set as Detectron2's ``convert_to_coco_json`` does.

    Other than there, fields may have any type that :func:`.dataset_dicts.standardize` takes, the
    size of an image may be missing, an image without ``image_id`` is numbered by its place, the
    dicts of the data set are not changed, and a file that is there is replaced.

    Args:
        name (str): registered name.
        path (str): of the file to write; its folder is made where it is missing.
        with_masks (bool): whether each object needs a mask.

    Raises:
        UserError: if the data set cannot be converted or evaluated, or if the file cannot be
            written.
    """
    metadata = MetadataCatalog.get(name)
    classes = metadata.get("thing_classes")
    if classes is None:
        raise UserError(
            f"data set {name} has no thing_classes, without which it cannot be evaluated; set "
            f"MetadataCatalog.get({name!r}).thing_classes to the names of its classes"
        )
    records = load_dicts(name)
    if isinstance(records, Dataset):
        records = [standardize(records[i]) for i in range(len(records))]
    records = fill_image_ids(records)
    for record in records:
        if "height" not in record:
            record["width"], record["height"] = image_size(record["file_name"])
    _check_ids(name, [record["image_id"] for record in records])
    for record in records:
        _check_objects(name, record, with_masks)

    # Detectron2 converts what is registered under a name.
    converted = MetadataCatalog.get(f"{name} (standardized)")
    converted.thing_classes = list(classes)
    ids = metadata.get("thing_dataset_id_to_contiguous_id")
    if ids is not None:
        ids = {whole_number(category_id): index for category_id, index in ids.items()}
        converted.thing_dataset_id_to_contiguous_id = ids
    DatasetCatalog.register(converted.name, lambda: records)
    try:
        text = json.dumps(convert_to_coco_dict(converted.name))
    except (AssertionError, LookupError, TypeError, ValueError) as e:
        reason = " ".join(f"{type(e).__name__}, {e}".split())
        raise UserError(f"data set {name} cannot be converted to COCO's format: {reason}") from None
    finally:
        DatasetCatalog.remove(converted.name)
        MetadataCatalog.remove(converted.name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with whole_file(path) as f:
        f.write(text.encode())


def _check_ids(name: str, ids: List[Any]) -> None:
    wrong = next((i for i in ids if not isinstance(i, (int, float, str))), None)
    if wrong is not None:
        raise UserError(f"data set {name}: the image_id {wrong!r} is neither a number nor a string")
    if len({isinstance(i, str) for i in ids}) > 1:
        raise UserError(f"data set {name}: some image_id are numbers and some are strings")
    seen = set()
    for i in ids:
        if i in seen:
            raise UserError(
                f"data set {name}: the image_id {i!r} is of several images; without image_id, "
                "images are numbered"
            )
        seen.add(i)


def _check_objects(name: str, record: Dict[str, Any], with_masks: bool) -> None:
    for index, annotation in enumerate(record.get("annotations", ())):
        reason = None
        if annotation.get("bbox_mode") == BoxMode.XYWHA_ABS:
            reason = (
                "a rotated box (BoxMode.XYWHA_ABS), which COCO's evaluation does not take: "
                "override build_evaluator"
            )
        elif with_masks or annotation.get("segmentation"):
            reason = mask_reason(annotation, [record["height"], record["width"]], "bitmask")
        if reason:
            raise UserError(
                f"data set {name}: object {index} of {printable(record['file_name'])} has {reason}"
            )
