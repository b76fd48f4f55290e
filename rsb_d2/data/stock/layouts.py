"""The files of Detectron2's built-in data sets that are not in COCO's layout."""

import json
import os
from typing import List

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.utils.file_io import PathManager

from ...errors import UserError, printable
from ..catalog import registered

_IMAGE = "leftImg8bit.png"
# What Detectron2 reads beside each image of Cityscapes, and where the last one comes from.
_CITYSCAPES_FILES = {
    "cityscapes_instance": ("instanceIds.png", "labelIds.png", "polygons.json"),
    "cityscapes_sem_seg": (
        *("instanceIds.png", "labelIds.png", "polygons.json", "labelTrainIds.png"),
    ),
}
_FREQUENCIES = ("r", "c", "f")
_FEDERATED = ("neg_category_ids", "not_exhaustive_category_ids")


def check_layouts(cfg: CfgNode, eval_only: bool) -> None:
    """Check the files of the LVIS, Pascal VOC and Cityscapes data sets that are used.

    Args:
        cfg (CfgNode): its data sets are registered, and their folders are there; not changed.
        eval_only (bool): leave out ``DATASETS.TRAIN``.

    Raises:
        UserError: if one is missing, or lacks what its evaluation needs.
    """
    for split in ("TEST",) if eval_only else ("TRAIN", "TEST"):
        for name in cfg.DATASETS[split]:
            # Other functions may read other files than the metadata name.
            module = getattr(registered(name), "__module__", "")
            if not module.startswith("detectron2.data.datasets"):
                continue
            metadata = MetadataCatalog.get(name)
            kind = metadata.get("evaluator_type")
            try:
                if kind == "lvis" and split == "TEST":
                    _check_lvis(metadata.json_file)
                elif kind == "pascal_voc":
                    _check_voc(metadata)
                elif kind in _CITYSCAPES_FILES:
                    _check_cityscapes(metadata, _CITYSCAPES_FILES[kind])
            except UserError as e:
                raise UserError(f"DATASETS.{split}: {name}: {e}") from None


def _check_lvis(path: str) -> None:
    """What ``lvis`` groups and counts by; a data set without annotations is not evaluated."""
    try:
        with PathManager.open(path) as f:
            content = json.load(f)
    except ValueError as e:
        raise UserError(f"{path} is no JSON: {e}") from None
    if not isinstance(content, dict) or "annotations" not in content:
        return
    for category in content.get("categories", ()):
        if category.get("frequency") not in _FREQUENCIES:
            raise UserError(
                f"{path} is without LVIS's frequency groups: the category "
                f"{printable(str(category.get('name')))} needs a 'frequency', one of r (rare), "
                "c (common) and f (frequent)"
            )
    for image in content.get("images", ()):
        missing = [key for key in _FEDERATED if key not in image]
        if missing:
            raise UserError(
                f"{path}: the image {image.get('id')} has no {missing[0]!r}, without which LVIS "
                "does not say which detections are wrong"
            )


def _check_voc(metadata: Metadata) -> None:
    path = os.path.join(metadata.dirname, "ImageSets", "Main", f"{metadata.split}.txt")
    if not PathManager.isfile(path):
        raise UserError(
            f"there is no list of its images, {path}; put it there (of VOCdevkit, as are the "
            "folders Annotations and JPEGImages), or name the folder above in the environment "
            "variable DETECTRON2_DATASETS"
        )
    with PathManager.open(path) as f:
        names = f.read().split()
    if len(names) < 2:
        raise UserError(f"{path} lists {len(names)} images; Detectron2 takes two or more")
    for folder, extension in (("Annotations", "xml"), ("JPEGImages", "jpg")):
        files = [os.path.join(metadata.dirname, folder, f"{name}.{extension}") for name in names]
        _check_all_there(files)


def _check_cityscapes(metadata: Metadata, suffixes: tuple) -> None:
    files = []
    for city in PathManager.ls(metadata.image_dir):
        folder = os.path.join(metadata.image_dir, city)
        if not PathManager.isdir(folder):
            raise UserError(f"{folder} is no folder; there are folders of cities alone")
        for image in PathManager.ls(folder):
            if not image.endswith(_IMAGE):
                raise UserError(f"{os.path.join(folder, image)} is no image *_{_IMAGE}; remove it")
            start = os.path.join(metadata.gt_dir, city, image[: -len(_IMAGE)] + "gtFine_")
            files += [start + suffix for suffix in suffixes]
    if not files:
        raise UserError(f"there is no image in {metadata.image_dir}")
    _check_all_there(files)


def _check_all_there(files: List[str]) -> None:
    missing = [path for path in files if not PathManager.isfile(path)]
    if not missing:
        return
    hint = ""
    if missing[0].endswith("labelTrainIds.png"):
        hint = "; cityscapesscripts makes it: csCreateTrainIdLabelImgs"
    raise UserError(
        f"{len(missing)} of its {len(files)} files are missing, the first is {missing[0]}{hint}"
    )
