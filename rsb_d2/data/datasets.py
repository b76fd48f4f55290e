"""The records of all data sets of a training or an evaluation.

The counterparts of ``detectron2.data.build.get_detection_dataset_dicts`` and of the functions that
it calls, for records that are made when they are asked for; the same images in the same order.
"""

import difflib
import inspect
import itertools
import json
import logging
import math
import os
from collections.abc import Sequence
from typing import Any, Callable, Dict, Iterable, List, Tuple

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.build import (
    filter_images_with_only_crowd_annotations,
    load_proposals_into_dataset,
)
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.data.datasets.coco import convert_to_coco_dict, register_coco_instances
from detectron2.structures import BoxMode
from detectron2.utils.logger import log_first_n
from tabulate import tabulate
from termcolor import colored
from torch.utils.data import ConcatDataset, Dataset

from ..errors import UserError, first, printable
from ..files import whole_file
from ..memory import garbage_collection_paused
from .coco_records import (
    AnnotationFile,
    CocoRecords,
    Columns,
    JoinedRecords,
    NotPlain,
    RecordTable,
    to_object,
)
from .dataset_dicts import (
    check_classes,
    count_visible_keypoints,
    fill_image_ids,
    load_dicts,
    mask_reason,
    standardize,
    whole_number,
)
from .images import image_size

logger = logging.getLogger(__name__)
_COCO_IDS = [c["id"] for c in COCO_CATEGORIES if c["isthing"]]
_NUM_LISTED = 10
# Whose warnings go onto the pages of a data set, too.
_coco_logger = logging.getLogger("detectron2.data.datasets.coco")


def registered(name: str, where: str = "") -> Callable[[], Any]:
    """Return the function that loads a data set, without calling it.

    ``where`` begins the error for an unknown name, such as the config key that it is from.
    """
    if name in DatasetCatalog:
        return DatasetCatalog[name]
    names = DatasetCatalog.list()
    matches = difflib.get_close_matches(str(name), names, n=3)
    raise UserError(
        f"{where and f'{where}: '}no data set is registered as {name!r}; "
        + (
            f"did you mean {first(matches)}? "
            if matches
            # Detectron2's own come first.
            else f"registered are {first(reversed(names), _NUM_LISTED)}. "
        )
        + "A COCO-format one of your own goes into DATASETS.COCO_JSON."
    )


def detection_records(
    names: Sequence,
    *,
    filter_empty: bool = True,
    min_keypoints: int = 0,
    proposal_files: Sequence | None = None,
) -> Sequence:
    """Return the records of data sets, as ``get_detection_dataset_dicts`` returns them.

    Data sets that a script has registered in another format than COCO's, and those with proposals
    from files, are lists in memory; so are all others that they are used with. A
    ``torch.utils.data.Dataset`` is used unchanged, with all its images.

    Args:
        names (sequence of str): registered names; a single one may be a str.
        filter_empty (bool): omit images without annotations, or with crowds only.
        min_keypoints (int): omit images with fewer visible keypoints.
        proposal_files (sequence of str or None): with proposals of each data set.

    Raises:
        UserError: if there is no such data set, if a registered function does not return a list of
            dicts, if the data sets differ in the names of their classes, or if an object is of a
            class without a name.
    """
    names = [names] if isinstance(names, str) else names
    for name in names:
        registered(name)
    if not names:
        raise UserError("there is no data set to read: DATASETS.TRAIN or DATASETS.TEST is empty")
    parts = [None if proposal_files is not None else open_records(name) for name in names]
    if None in parts:
        options = dict(filter_empty=filter_empty, min_keypoints=min_keypoints)
        return _records_in_memory(names, proposal_files, **options)
    if filter_empty:
        parts, removed, left = _keep(parts, lambda part: part.num_objects() > 0)
        logger.info(f"Removed {removed} images with no usable annotations. {left} images left.")
    if min_keypoints > 0:
        parts, removed, _ = _keep(parts, lambda part: part.visible_keypoints() >= min_keypoints)
        logger.info(f"Removed {removed} images with fewer than {min_keypoints} keypoints.")
    records = parts[0] if len(parts) == 1 else JoinedRecords(parts)
    classes = _common_class_names(names)
    if classes is not None:
        _log_classes(records.classes(with_crowds=False)[0], classes)
    return records


def _records_in_memory(
    names: Sequence, proposal_files: Sequence | None, *, filter_empty: bool, min_keypoints: int
) -> Sequence:
    data = [load_dicts(name) for name in names]
    if proposal_files is not None:
        proposal_files = map(os.path.expanduser, proposal_files)
        data = list(map(load_proposals_into_dataset, data, proposal_files))
    if all(isinstance(records, Dataset) for records in data):
        return ConcatDataset(data)
    records = []
    for of_name in data:
        is_lazy = isinstance(of_name, Dataset)
        records += (
            map(standardize, map(of_name.__getitem__, range(len(of_name)))) if is_lazy else of_name
        )
    if not any("annotations" in record for record in records):
        return records
    for record in records:
        record.setdefault("annotations", [])
    classes = _common_class_names(names)
    if classes is not None:
        check_classes(names, records, classes)
    if filter_empty:
        records = filter_images_with_only_crowd_annotations(records)
    if min_keypoints > 0:
        num_before = len(records)
        records = [r for r in records if count_visible_keypoints(r) >= min_keypoints]
        num_removed = num_before - len(records)
        logger.info(f"Removed {num_removed} images with fewer than {min_keypoints} keypoints.")
    if classes is not None:
        objects = (a for r in records for a in r["annotations"] if not a.get("iscrowd", 0))
        numbers = [a["category_id"] for a in objects if type(a.get("category_id")) is int]
        _log_classes(np.array(numbers, dtype=int), classes)
    return records


def _common_class_names(names: Sequence) -> List[str] | None:
    """The names of the classes, which must be the same; None if a data set has none."""
    found = [MetadataCatalog.get(name).get("thing_classes") for name in names]
    if any(classes is None for classes in found):
        return None
    for name, classes in zip(names, found):
        is_list = isinstance(classes, (list, tuple)) and all(isinstance(c, str) for c in classes)
        if not is_list:
            raise UserError(
                f"data set {name}: its thing_classes are {printable(repr(classes))}; set "
                f"MetadataCatalog.get({name!r}).thing_classes to a list of names"
            )
        if list(classes) != list(found[0]):
            raise UserError(
                f"{names[0]} and {name} must have the same thing_classes, in the same order; they "
                f"are {first(found[0])} and {first(classes)}"
            )
    return list(found[0])


def open_records(name: str) -> CocoRecords | None:
    """Open a data set whose annotation file this project reads; None for any other data set."""
    load = registered(name)
    found = _arguments_of_stock(load)
    if found is None:
        # Any other function is called once, by the caller.
        return load() if getattr(load, "returns_coco_records", False) else None
    try:
        records = _read_as_stock(name, found["json_file"], found["image_root"])
    except (NotPlain, UserError) as e:
        logger.info(f"{found['json_file']} is read by Detectron2: {e}")
        return None
    return records


def _arguments_of_stock(load: Any) -> Dict[str, Any] | None:
    """Return the arguments of ``register_coco_instances``; None for a data set of another kind."""
    if getattr(load, "__module__", "") != register_coco_instances.__module__:
        return None
    if not getattr(load, "__qualname__", "").startswith("register_coco_instances."):
        return None
    found = inspect.getclosurevars(load).nonlocals
    is_known = {"name", "json_file", "image_root"} == found.keys()
    return found if is_known and all(isinstance(v, str) for v in found.values()) else None


def _read_as_stock(name: str, json_file: str, image_root: str) -> CocoRecords:
    """Read a file as ``load_coco_json`` does, without any check.

    Raises:
        NotPlain, UserError: if ``load_coco_json`` might stop at the file, or read it otherwise.
    """
    try:
        with garbage_collection_paused():
            file = AnnotationFile(json_file)
            categories, images = file.records("categories"), file.records("images")
            names = {category["id"]: category["name"] for category in categories}
            numbers = [i[key] for i in images for key in ("id", "height", "width")]
            is_unique = len({i["id"] for i in images}) == len(images)
            if not (names and len(names) == len(categories) and is_unique):
                raise NotPlain("its categories or images have no ids of their own")
            if not all(type(number) is int for number in (*numbers, *names)):
                raise NotPlain("its ids and sizes are not integers")
            columns, num_left_out = _fill_columns(file, images, names)
            table = RecordTable(columns)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as e:
        # UserError is one of them.
        raise NotPlain(str(e) if isinstance(e, UserError) else f"{type(e).__name__}: {e}") from None
    set_coco_metadata(name, [names[i] for i in sorted(names)], sorted(names))
    if num_left_out:
        logger.warning(f"Filtered out {num_left_out} instances without valid segmentation.")
    _coco_logger.info(f"Loaded {len(images)} images in COCO format from {json_file}")
    return CocoRecords(table, image_root)


def _fill_columns(file: AnnotationFile, images: List[Dict], category_ids: Iterable[int]) -> tuple:
    columns, num_left_out = Columns(file, images, category_ids), 0
    unusual = np.flatnonzero(~columns.is_set | columns.has_rle)
    for index, annotation in zip(unusual.tolist(), file.annotations(unusual.tolist())):
        if annotation.get("ignore", 0) != 0 or len(annotation.get("bbox", "none")) == 0:
            raise NotPlain("it has an annotation with 'ignore' or without a box")
        if not all(isinstance(annotation[key], int) for key in ("id", "image_id")):
            raise NotPlain("the ids of its annotations are not integers")
        if to_object(annotation, columns.class_of_id) is None:
            num_left_out += 1
            columns.ids[index], columns.is_set[index] = annotation["id"], False
        else:
            columns.set(index, annotation)
    if (columns.is_set & ((columns.places < 0) | (columns.classes < 0))).any():
        raise NotPlain("it has an annotation of an unknown image or category")
    if columns.has_duplicates():
        raise NotPlain("its annotation ids are not unique")
    return columns, num_left_out


def set_coco_metadata(name: str, category_names: List[str], category_ids: List[int]) -> None:
    """Set the metadata that ``load_coco_json`` sets, and warn as it does of ids with gaps.

    There is no warning for COCO's own ids; Detectron2 recognizes COCO by the name of the data set.
    The names are in the order of the ids, which ascend.
    """
    metadata = MetadataCatalog.get(name)
    metadata.thing_classes = list(category_names)
    metadata.thing_dataset_id_to_contiguous_id = {c: i for i, c in enumerate(category_ids)}
    is_usual = min(category_ids) == 1 and max(category_ids) == len(category_ids)
    if not is_usual and list(category_ids) != _COCO_IDS:
        _coco_logger.warning(
            "Category ids in annotations are not in [1, #categories]! We'll apply a mapping for "
            "you."
        )


def _keep(
    parts: List[CocoRecords], condition: Callable[[CocoRecords], np.ndarray]
) -> Tuple[List[CocoRecords], int, int]:
    """The records that meet a condition, how many of all do not, and how many do."""
    kept = [part.select(condition(part)) for part in parts]
    left = sum(map(len, kept))
    return kept, sum(map(len, parts)) - left, left


def _log_classes(classes: np.ndarray, names: List[str]) -> None:
    """Log how many objects each class has, as ``print_instances_class_histogram`` does."""
    counts = np.bincount(classes, minlength=len(names)).tolist()
    shown = [name if len(name) <= 13 else name[:11] + ".." for name in names]
    total = str(sum(counts)) if len(names) > 1 else None
    table = class_table(shown, map(str, counts), "#instances", align="center", total=total)
    log_first_n(
        logging.INFO,
        f"Distribution of instances among all {len(names)} categories:\n" + colored(table, "cyan"),
        key="message",
        name=__name__,
    )


def class_table(
    names: Iterable[str],
    values: Iterable[str],
    header: str,
    align: str = "left",
    total: str | None = None,
) -> str:
    """Lay out one value of each class in the form of Detectron2's tables.

    Names are shown literally, also "1.50" and "True", which ``tabulate`` would convert. ``align``
    is ``"left"`` or ``"center"``; ``total`` is the value of the last row.
    """
    cells: List[str | None] = [x for pair in zip(map(printable, names), values) for x in pair]
    if not cells:
        return ""
    columns = min(6, len(cells))
    if total is not None:
        cells += [None] * (columns - len(cells) % columns) + ["total", total]
    return tabulate(
        list(itertools.zip_longest(*(cells[i::columns] for i in range(columns)))),
        headers=["category", header] * (columns // 2),
        tablefmt="pipe",
        colalign=(align, "left") * (columns // 2),
        disable_numparse=True,
    )


def repeat_factors(records: Any, threshold: float, sqrt: bool = True) -> torch.Tensor:
    """As ``RepeatFactorTrainingSampler.repeat_factors_from_category_frequency``, for N images.

    ``sqrt`` is whether the square root of the ratio is used, as in Detectron2's main branch.
    """
    classes, image = records.classes(with_crowds=True)
    num_classes = classes.max(initial=0) + 1
    pairs = np.sort(image * num_classes + classes)  # np.unique takes a second for a million
    image, classes = np.divmod(pairs[np.diff(pairs, prepend=-1) > 0], num_classes)
    num_images = np.bincount(classes)
    root = math.sqrt if sqrt else float
    factors = [
        max(1.0, root(threshold / (count / len(records)))) if count else 1.0
        for count in num_images.tolist()
    ]
    largest = np.ones(len(records))
    np.maximum.at(largest, image, np.array(factors)[classes])
    return torch.from_numpy(largest).float()


# ---- as a file in COCO's format ----


def convert_to_coco_file(name: str, path: str, *, with_masks: bool = False) -> None:
    """Write a data set as Detectron2's ``convert_to_coco_json`` does.

    In addition, fields may have any type that :func:`.dataset_dicts.standardize` accepts, the size
    of an image may be missing, an image without ``image_id`` is numbered by its position, the dicts
    of the data set are not changed, and an existing file is replaced. ``with_masks`` requires a
    mask for each object.
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

    # Detectron2 converts a data set by its registered name.
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
