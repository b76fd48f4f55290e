"""Checks of data sets: registered, readable, with the classes and keypoints of the model."""

import logging
import os
from typing import List, Tuple

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager

from ..data.builtin import check_layouts, check_packages
from ..data.coco_json import NUM_CLASSES_NODE, CocoJsonDataset
from ..data.datasets import registered
from ..data.loader import SAMPLERS
from ..data.opening import is_image_folder
from ..errors import UserError, first
from ..evaluation.coco_evaluation import keypoint_sigmas
from ..registration import architecture_name

logger = logging.getLogger(__name__)

# Architectures with Detectron2's head for semantic segmentation.
_WITH_STUFF = ("PanopticFPN", "SemanticSegmentor")
_NUM_KEYPOINTS = "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"


def check_datasets(cfg: CfgNode, eval_only: bool) -> None:
    """Check that data sets are named, that each is registered, and that its packages are installed.

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


def check_files(cfg: CfgNode, eval_only: bool) -> None:
    """Check the files and classes of the data sets that are not of ``DATASETS.COCO_JSON``.

    Detectron2 reads a test set at the first evaluation, too late to report a missing file.

    Args:
        cfg (CfgNode): its ``DATASETS.TRAIN`` and ``.TEST`` are registered; not changed.
        eval_only (bool): leave out ``DATASETS.TRAIN``.

    Raises:
        UserError: if an annotation file or image folder is missing or incomplete, or if the model
            has another number of classes.
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
    check_layouts(cfg, eval_only)


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


def check_keypoints(cfg: CfgNode, eval_only: bool = False) -> None:
    """Check the keys of keypoints against the metadata of the data sets.

    Args:
        cfg (CfgNode): its data sets are registered; not changed.
        eval_only (bool): leave out what only training reads.

    Raises:
        UserError: if a data set does not name its keypoints, or the data sets differ in them; if
            ``NUM_KEYPOINTS`` or the number of sigmas is another.
    """
    if not cfg.MODEL.KEYPOINT_ON:
        return
    names = keypoint_names(cfg, eval_only)
    if not names:
        return
    num_keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
    if num_keypoints != len(names):
        raise UserError(
            f"{_NUM_KEYPOINTS} is {num_keypoints}, but the data has {len(names)} keypoints "
            f"({first(names)}); write {_NUM_KEYPOINTS} {len(names)}"
        )
    sigmas = keypoint_sigmas(cfg.TEST.KEYPOINT_OKS_SIGMAS, len(names))
    if not all(sigma > 0 for sigma in sigmas):
        raise UserError(
            f"TEST.KEYPOINT_OKS_SIGMAS is {list(sigmas)}; each value must be a number above 0"
        )
    if eval_only:
        return
    for name in cfg.DATASETS.TRAIN:
        pairs = MetadataCatalog.get(name).get("keypoint_flip_map")
        if pairs is None:
            raise UserError(
                f"DATASETS.TRAIN: the metadata of {name} has no keypoint_flip_map; set it to pairs "
                "of names, or to [] if a flip changes no keypoint into another"
            )


def log_keypoint_notes(cfg: CfgNode, eval_only: bool) -> None:
    """Log the sigmas that are used by default, and flips that cannot swap left and right."""
    names = keypoint_names(cfg, eval_only) if cfg.MODEL.KEYPOINT_ON else []
    if names and not len(cfg.TEST.KEYPOINT_OKS_SIGMAS):
        sigmas = keypoint_sigmas((), len(names))
        logger.info(f"TEST.KEYPOINT_OKS_SIGMAS is empty; the sigmas are {first(sigmas, 20)}.")
    if not eval_only and cfg.INPUT.RANDOM_FLIP == "horizontal" and len(names) > 1:
        if not MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).keypoint_flip_map:
            logger.warning(
                "INPUT.RANDOM_FLIP is horizontal, but the names of the keypoints do not tell left "
                "from right, so a flipped object keeps them as they are. Where that is wrong, "
                "write DATASETS.KEYPOINT_FLIP_PAIRS [[left name, right name], ...] or "
                "INPUT.RANDOM_FLIP none."
            )


def keypoint_names(cfg: CfgNode, eval_only: bool) -> List[str]:
    """Return the names of the keypoints, which training data must have; empty if unknown.

    Raises:
        UserError: if a data set to train on has none, or data sets have different ones.
    """
    train = () if eval_only else cfg.DATASETS.TRAIN
    found = {}
    for name in (*train, *cfg.DATASETS.TEST):
        names = MetadataCatalog.get(name).get("keypoint_names")
        if names:
            found[name] = list(names)
        elif name in train:
            raise UserError(
                f"MODEL.KEYPOINT_ON: data set {name} does not name its keypoints; set "
                f"MetadataCatalog.get({name!r}).keypoint_names, or write MODEL.KEYPOINT_ON False"
            )
    one = next(iter(found), None)
    for name, names in found.items():
        if names != found[one]:
            raise UserError(
                f"MODEL.KEYPOINT_ON: {one} and {name} must have the same keypoints, in the same "
                f"order; they are {first(found[one])} and {first(names)}"
            )
    return found.get(one, [])
