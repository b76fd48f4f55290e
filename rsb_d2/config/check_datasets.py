"""The data sets of a config: registered, there, and with as many classes as the model."""

import difflib
from typing import List, Tuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from ..data.coco_json import NUM_CLASSES_NODE, CocoJsonDataset
from ..errors import UserError


def check_datasets(cfg: CfgNode, eval_only: bool) -> None:
    """Check that there are data sets, and that each is registered.

    Args:
        cfg (CfgNode): its ``DATASETS.COCO_JSON`` are registered; not changed.
        eval_only (bool): only ``DATASETS.TEST`` is needed.

    Raises:
        UserError: if there is none, or a name is not registered.
    """
    if not eval_only and not cfg.DATASETS.TRAIN:
        raise UserError("DATASETS.TRAIN is empty: name the data sets to train on")
    if eval_only and not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST is empty: name the data sets to evaluate on")
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            if name not in DatasetCatalog:
                matches = difflib.get_close_matches(name, DatasetCatalog.list(), n=3)
                raise UserError(
                    f"DATASETS.{key}: no data set is registered as {name!r}; "
                    + (f"did you mean {', '.join(matches)}? " if matches else "")
                    + "A COCO-format one of your own goes into DATASETS.COCO_JSON."
                )


def check_other_datasets(cfg: CfgNode, eval_only: bool) -> None:
    """Check the data sets that are not of ``DATASETS.COCO_JSON``, as Detectron2's own.

    A test set is first read at the first evaluation, when its file may turn out to be missing.

    Args:
        cfg (CfgNode): its ``DATASETS.TRAIN`` and ``.TEST`` are registered; not changed.
        eval_only (bool): leave out ``DATASETS.TRAIN``.

    Raises:
        UserError: if an annotation file or image folder is missing, or if the model has another
            number of classes.
    """
    for split in ("TEST",) if eval_only else ("TRAIN", "TEST"):
        for name in cfg.DATASETS[split]:
            load = DatasetCatalog[name]
            if isinstance(load, CocoJsonDataset):
                continue
            # Other functions may read other files than the metadata name.
            if getattr(load, "__module__", "").startswith("detectron2.data.datasets"):
                _check_files(split, name)
            _check_num_classes(cfg, split, name)


def _check_files(split: str, name: str) -> None:
    metadata = MetadataCatalog.get(name)
    files: List[Tuple[str, str]] = [
        ("annotation file", metadata.get("json_file")),
        ("image folder", metadata.get("image_root")),
    ]
    for what, path in files:
        if path and "://" not in path and not PathManager.exists(path):
            raise UserError(
                f"DATASETS.{split}: {name} has its {what} at {path}, where there is none; put the "
                "data there, or name the folder above in the environment variable "
                "DETECTRON2_DATASETS"
            )


def _check_num_classes(cfg: CfgNode, split: str, name: str) -> None:
    node = NUM_CLASSES_NODE.get(cfg.MODEL.META_ARCHITECTURE)
    classes = MetadataCatalog.get(name).get("thing_classes")
    if node is None or not classes:
        return
    key, num_classes = f"MODEL.{node}.NUM_CLASSES", cfg.MODEL[node].NUM_CLASSES
    if num_classes != len(classes):
        raise UserError(
            f"{key} is {num_classes}, but {name} of DATASETS.{split} has {len(classes)} classes; "
            f"write {key} {len(classes)}"
        )
