"""The data sets of a config: registered, there, and with as many classes as the model."""

import os
from typing import List, Tuple

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager

from ..data.builtin import check_packages
from ..data.coco_json import NUM_CLASSES_NODE, CocoJsonDataset
from ..data.datasets import registered
from ..data.loader import SAMPLERS
from ..data.opening import is_image_folder
from ..errors import UserError
from ..registration import architecture_name

# Architectures with a head for the semantic segmentation of Detectron2.
_WITH_STUFF = ("PanopticFPN", "SemanticSegmentor")


def check_datasets(cfg: CfgNode, eval_only: bool) -> None:
    """Check that there are data sets, that each is registered, and that it can be read here.

    Args:
        cfg (CfgNode): its ``DATASETS.COCO_JSON`` are registered; not changed.
        eval_only (bool): only ``DATASETS.TEST`` is needed.

    Raises:
        UserError: if there is none, if a name is not registered, if a package is missing that
            reads or evaluates it, or if federated loss lacks its numbers.
    """
    if not eval_only and not cfg.DATASETS.TRAIN:
        raise UserError("DATASETS.TRAIN is empty: name the data sets to train on")
    if not eval_only and cfg.DATALOADER.SAMPLER_TRAIN not in SAMPLERS:
        raise UserError(
            f"DATALOADER.SAMPLER_TRAIN is {cfg.DATALOADER.SAMPLER_TRAIN!r}; write "
            f"{' or '.join(SAMPLERS)}"
        )
    if eval_only and not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST is empty: name the data sets to evaluate on")
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            registered(name, f"DATASETS.{key}")
            if key == "TEST" or not eval_only:
                check_packages(name, key)
    _check_federated_loss(cfg)


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
            load = registered(name, f"DATASETS.{split}")
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
        ("image folder", metadata.get("image_root") or metadata.get("image_dir")),
        ("folder", metadata.get("dirname")),
        ("folder of annotations", metadata.get("gt_dir")),
        ("folder of labels", metadata.get("sem_seg_root")),
        ("panoptic annotation file", metadata.get("panoptic_json")),
        ("folder of panoptic pictures", metadata.get("panoptic_root")),
    ]
    for what, path in files:
        is_there = PathManager.exists if what.endswith("file") else is_image_folder
        # register_coco_instances takes paths, too.
        path = os.fspath(path or "")
        if path and "://" not in path and not is_there(path):
            raise UserError(
                f"DATASETS.{split}: {name} has its {what} at {path}, where there is none; put the "
                "data there, or name the folder above in the environment variable "
                "DETECTRON2_DATASETS"
            )


def _check_num_classes(cfg: CfgNode, split: str, name: str) -> None:
    metadata, architecture = MetadataCatalog.get(name), architecture_name(cfg)
    nodes = {"thing_classes": NUM_CLASSES_NODE.get(architecture)}
    if architecture in _WITH_STUFF:
        nodes["stuff_classes"] = "SEM_SEG_HEAD"
    for kind, node in nodes.items():
        classes = metadata.get(kind)
        if node is None or not classes:
            continue
        key, num_classes = f"MODEL.{node}.NUM_CLASSES", cfg.MODEL[node].NUM_CLASSES
        if num_classes != len(classes):
            raise UserError(
                f"{key} is {num_classes}, but {name} of DATASETS.{split} has {len(classes)} "
                f"classes; write {key} {len(classes)}"
            )


def _check_federated_loss(cfg: CfgNode) -> None:
    head = cfg.MODEL.ROI_BOX_HEAD
    if not head.get("USE_FED_LOSS", False):  # of Detectron2's main
        return
    if not head.USE_SIGMOID_CE:
        raise UserError(
            "MODEL.ROI_BOX_HEAD.USE_FED_LOSS chooses classes of a sigmoid loss; write "
            "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE True, too"
        )
    # The model is built with them, also to be evaluated.
    for name in cfg.DATASETS.TRAIN:
        if not MetadataCatalog.get(name).get("class_image_count"):
            raise UserError(
                f"MODEL.ROI_BOX_HEAD.USE_FED_LOSS needs to know how many images each class is in, "
                f"which {name} of DATASETS.TRAIN does not say (its metadata class_image_count); "
                "lvis_v1_train does"
            )
