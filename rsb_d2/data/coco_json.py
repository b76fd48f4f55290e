"""Users' COCO-format data sets, registered from the config: ``DATASETS.COCO_JSON``.

A data set in use is checked before anything is trained on it, by ``coco_check.py``. Where the check
dropped or filled in something, a corrected copy of the annotation file goes to the cache folder
(``$FVCORE_CACHE``, by default ``~/.torch/iopath_cache``), which training and evaluation read: the
ground truth is the same for both. The user's file is never changed.
"""

import logging
import os
import time
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, Dict, List, Tuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from ..errors import UserError, first, how_to_make
from ..files import absolute
from ..registration import architecture_name
from .coco_check import ROBOFLOW_FILE, CheckedCocoJson, check_coco_json, export_splits
from .coco_records import CocoRecords
from .datasets import set_coco_metadata
from .keypoints import (
    check_flip_pairs,
    common_keypoints,
    connection_rules,
    flip_pairs,
    unpaired_names,
)
from .opening import configure_storages

logger = logging.getLogger(__name__)
_coco_logger = logging.getLogger("detectron2.data.datasets.coco")

# The key that says how many classes a meta architecture has. One that is not here (ProposalNetwork,
# SemanticSegmentor, a user's own) has no such key, or none that is known.
NUM_CLASSES_NODE = {
    "GeneralizedRCNN": "ROI_HEADS",
    "PanopticFPN": "ROI_HEADS",
    "RetinaNet": "RETINANET",
    "OpenMMLabRetinaNet": "RETINANET",
    "TorchvisionRetinaNet": "RETINANET",
}


def register_coco_json(cfg: CfgNode, *, eval_only: bool = False) -> None:
    """Register the data sets of ``DATASETS.COCO_JSON`` in Detectron2's catalogs.

    Those in ``DATASETS.TRAIN`` and ``DATASETS.TEST`` are read and checked now, any other one when
    ``DatasetCatalog.get`` asks for it. Registering the same entry again does nothing, unless its
    file has changed since.

    Args:
        cfg (CfgNode): a config with this project's keys. Each entry of ``DATASETS.COCO_JSON`` is
            ``[name, annotation file, image folder]``, or ``[name, folder]`` for an unzipped export
            of Roboflow, see :func:`coco_json_entries`; paths are relative to the working
            directory, may begin with ``~``, or be anything that Detectron2's ``PathManager``
            opens.
        eval_only (bool): check only ``DATASETS.TEST``, so that an evaluation runs where the
            training data is not.

    Raises:
        UserError: if an entry has the wrong shape or a name that is taken; if a file cannot be
            used (``coco_check.py`` says when); if the data sets used differ in their categories;
            if the model's number of classes is not theirs; if there is nothing to train on or
            to evaluate with; with ``MODEL.KEYPOINT_ON``, if their categories do not name the same
            keypoints.
    """
    configure_storages(cfg)
    datasets = {}
    entries = coco_json_entries(cfg.DATASETS.COCO_JSON)
    files = {absolute(json_file) for _, json_file, _ in entries}
    for name, json_file, image_root in entries:
        paths = absolute(json_file), absolute(image_root)
        others = sorted(files - {paths[0]})
        dataset = _register(CocoJsonDataset(name, *paths, cfg.MODEL.MASK_ON, others))
        datasets[dataset.name] = dataset

    train = [] if eval_only else [datasets[n] for n in cfg.DATASETS.TRAIN if n in datasets]
    test = [datasets[n] for n in cfg.DATASETS.TEST if n in datasets]
    for dataset in train + test:
        dataset.check()
    _check_same_categories(train + test)
    _check_num_classes(cfg, train + test)
    _check_objects(cfg, train, test)
    if cfg.MODEL.KEYPOINT_ON:
        for dataset in train + test:
            dataset.set_keypoints(cfg.DATASETS.KEYPOINT_FLIP_PAIRS)
        _check_keypoints(cfg, train)


class CocoJsonDataset:
    """One entry of ``DATASETS.COCO_JSON``: the function that Detectron2's catalog calls.

    Args:
        name (str): the name it is registered under.
        json_file (str): annotation file.
        image_root (str): image folder.
        with_masks (bool): whether an annotation without a usable mask is to be dropped.
        others (sequence of str): annotation files of other splits, see
            :func:`.coco_check.check_coco_json`.

    Attributes:
        checked (CheckedCocoJson or None): result of the check.
    """

    returns_coco_records = True

    def __init__(
        self,
        name: str,
        json_file: str,
        image_root: str,
        with_masks: bool,
        others: Sequence[str] = (),
    ):
        self.name = name
        self.json_file = json_file
        self.image_root = image_root
        self.with_masks = with_masks
        self.others = others
        self.checked: CheckedCocoJson | None = None
        self._checked_as: Tuple | None = None
        self._keypoint_metadata: Dict[str, Any] = {}

    def __call__(self) -> CocoRecords:
        """Return Detectron2's dicts, each of which is made when it is asked for."""
        self.check()
        checked = self.checked
        set_coco_metadata(self.name, checked.category_names, checked.category_ids)
        # A separate list, because its records may get other keys.
        return checked.records.select(slice(None))

    def check(self) -> None:
        """Check the files, unless they have not changed since the last check; set the metadata."""
        try:
            check_as = (self.with_masks, tuple(self.others), *_size_and_time(self.json_file))
            if check_as == self._checked_as:
                return
            start = time.perf_counter()
            checked = check_coco_json(
                self.json_file, self.image_root, with_masks=self.with_masks, others=self.others
            )
        except UserError as e:
            raise UserError(f"data set {self.name}: {self.json_file}: {e}") from None
        if self.checked is not None:
            MetadataCatalog.remove(self.name)  # metadata cannot be set twice
        self.checked, self._checked_as = checked, check_as
        self.set_metadata()
        seconds = time.perf_counter() - start
        if seconds > 1:  # as Detectron2 does
            logger.info(f"Reading {self.json_file} took {seconds:.2f} s")
        for level, text in checked.messages:
            logger.log(level, text)
        _coco_logger.info(
            f"Loaded {len(checked.records)} images in COCO format from {checked.json_file}"
        )

    def set_metadata(self) -> None:
        metadata = MetadataCatalog.get(self.name)
        metadata.set(evaluator_type="coco", image_root=self.image_root)
        if self.checked is None:
            return
        # An evaluator that came before the check has set this to its own conversion.
        if not hasattr(metadata, "json_file"):
            metadata.json_file = self.checked.json_file
        metadata.thing_classes = self.checked.category_names
        metadata.thing_dataset_id_to_contiguous_id = {
            category_id: i for i, category_id in enumerate(self.checked.category_ids)
        }
        metadata.set(**self._keypoint_metadata)

    def set_keypoints(self, pairs: Sequence[Sequence[str]]) -> None:
        """Set the metadata that Detectron2 needs to train keypoints; needs the check.

        ``pairs`` is ``DATASETS.KEYPOINT_FLIP_PAIRS``; if empty, the names of the keypoints define
        the pairs.
        """
        checked, metadata = self.checked, MetadataCatalog.get(self.name)
        try:
            found = common_keypoints(checked.categories)
        except UserError as e:
            raise UserError(f"data set {self.name}: {self.json_file}: {e}") from None
        check_flip_pairs(pairs, found.names)
        self._keypoint_metadata = {
            "keypoint_names": found.names,
            "keypoint_flip_map": [tuple(p) for p in pairs] or flip_pairs(found.names),
            "keypoint_connection_rules": connection_rules(found),
        }
        for key in self._keypoint_metadata:
            if hasattr(metadata, key):  # an attribute cannot be set to another value
                delattr(metadata, key)
        metadata.set(**self._keypoint_metadata)


# ---- entries ----


def coco_json_entries(entries: Sequence[Any]) -> List[Tuple[str, str, str]]:
    """Return the entries of ``DATASETS.COCO_JSON`` as names, annotation files and image folders.

    ``[name, folder]`` is an unzipped export of Roboflow, which has ``train``, ``valid`` and
    ``test``, each with ``_annotations.coco.json`` and the images: it becomes ``name_train``,
    ``name_val`` and ``name_test``, as far as they exist.
    """
    found = []
    for entry in entries:
        is_entry = isinstance(entry, (list, tuple)) and len(entry) in (2, 3)
        if not (is_entry and all(isinstance(e, str) and e for e in entry)):
            raise UserError(
                f"DATASETS.COCO_JSON has the entry {entry!r}; write "
                "[[name, annotation file, image folder], ...], three strings each, or "
                "[name, folder] for an export of Roboflow"
            )
        found += [tuple(entry)] if len(entry) == 3 else _export_entries(*entry)
    return found


def _export_entries(name: str, folder: str) -> List[Tuple[str, str, str]]:
    found = []
    for split, part in export_splits(folder).items():
        found.append((f"{name}_{split}", os.path.join(part, ROBOFLOW_FILE), part))
    if not found:
        raise UserError(
            f"DATASETS.COCO_JSON: {name}: {folder} has no train/{ROBOFLOW_FILE}, "
            f"valid/{ROBOFLOW_FILE} or test/{ROBOFLOW_FILE}; name the folder that has, or write "
            "[name, annotation file, image folder]"
        )
    return found


def _register(dataset: CocoJsonDataset) -> CocoJsonDataset:
    """Return the data set that is registered under this name: this one, or its equal."""
    if dataset.name not in DatasetCatalog:
        DatasetCatalog.register(dataset.name, dataset)
        dataset.set_metadata()
        return dataset

    registered = DatasetCatalog[dataset.name]
    if not isinstance(registered, CocoJsonDataset):
        raise UserError(
            f"DATASETS.COCO_JSON: {dataset.name} is the name of a data set that Detectron2 or "
            "a script has registered; choose another name"
        )
    old, new = ([d.json_file, d.image_root] for d in (registered, dataset))
    if old != new:
        raise UserError(
            f"DATASETS.COCO_JSON: {dataset.name} is registered already, with {', '.join(old)}; "
            f"choose another name for {', '.join(new)}"
        )
    registered.with_masks, registered.others = dataset.with_masks, dataset.others
    return registered


def _size_and_time(path: str) -> Tuple[int, int]:
    try:
        stat = os.stat(PathManager.get_local_path(path))
    except FileNotFoundError:
        raise UserError(f"there is no such annotation file{how_to_make(path)}") from None
    except OSError as e:
        raise UserError(f"cannot be read: {e}") from None
    return stat.st_size, stat.st_mtime_ns


# ---- data sets against one another, and against the config ----


def _check_same_categories(datasets: List[CocoJsonDataset]) -> None:
    for other in datasets[1:]:
        pair = datasets[0], other
        names, other_names = (dataset.checked.category_names for dataset in pair)
        at = next(
            (i for i, ns in enumerate(zip_longest(names, other_names)) if len({*ns}) > 1), None
        )
        if at is None:
            continue
        found = (
            f"{repr(ns[at]) if at < len(ns) else 'missing'} in {d.name} ({len(ns)} in all)"
            for d, ns in zip(pair, (names, other_names))
        )
        raise UserError(
            f"{datasets[0].name} and {other.name} must have the same categories, in the order of "
            f"their ids; category {at} is {', '.join(found)}"
        )


def _check_num_classes(cfg: CfgNode, datasets: List[CocoJsonDataset]) -> None:
    node = NUM_CLASSES_NODE.get(architecture_name(cfg))
    if node is None or not datasets:
        return
    names = datasets[0].checked.category_names
    key, num_classes = f"MODEL.{node}.NUM_CLASSES", cfg.MODEL[node].NUM_CLASSES
    if num_classes != len(names):
        raise UserError(
            f"{key} is {num_classes}, but {datasets[0].name} has {len(names)} categories "
            f"({first(names)}); write {key} {len(names)}"
        )


def _check_objects(cfg: CfgNode, train: List[CocoJsonDataset], test: List[CocoJsonDataset]) -> None:
    has_objects = {d.name: d.checked.records.num_objects().any() for d in train + test}
    names = [dataset.name for dataset in train]
    # Another data set may have the objects; one with only background is then not a mistake.
    if names and len(names) == len(cfg.DATASETS.TRAIN) and not any(map(has_objects.get, names)):
        raise UserError(
            f"DATASETS.TRAIN: there is no usable annotation in {first(names)}, so there is nothing "
            "to learn (crowds do not count); check the annotation file"
        )
    for dataset in test:
        if not has_objects[dataset.name]:
            raise UserError(
                f"DATASETS.TEST: {dataset.name} has no usable annotation, so AP cannot be computed "
                "(crowds do not count); check the annotation file, or take it out of DATASETS.TEST"
            )
    for dataset in train if cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT == "polygon" else ():
        if num_rle := dataset.checked.records.num_rle_objects().sum():
            raise UserError(
                f"{dataset.name} has {num_rle} masks in RLE, which INPUT.MASK_FORMAT polygon "
                "cannot train on; write INPUT.MASK_FORMAT bitmask"
            )


def _check_keypoints(cfg: CfgNode, train: List[CocoJsonDataset]) -> None:
    if train and not any(d.checked.records.visible_keypoints().any() for d in train):
        raise UserError(
            f"MODEL.KEYPOINT_ON: no object in {first(d.name for d in train)} has a keypoint whose "
            "visibility is above 0, so there is nothing to learn; check the 'keypoints' of the "
            "annotations, [x, y, visibility, ...]"
        )
    if cfg.INPUT.RANDOM_FLIP != "horizontal" or cfg.DATASETS.KEYPOINT_FLIP_PAIRS:
        return
    for dataset in train:
        metadata = MetadataCatalog.get(dataset.name)
        unpaired = unpaired_names(metadata.keypoint_names, metadata.keypoint_flip_map)
        if unpaired:
            raise UserError(
                f"INPUT.RANDOM_FLIP is horizontal, but of the keypoints of {dataset.name}, "
                f"{first(unpaired)} have no counterpart on the other side; write "
                "DATASETS.KEYPOINT_FLIP_PAIRS [[left name, right name], ...] or INPUT.RANDOM_FLIP "
                "none"
            )
