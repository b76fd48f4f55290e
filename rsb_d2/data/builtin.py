"""Detectron2's built-in data sets that are not in COCO's format: their files and packages."""

import importlib
import importlib.util
import inspect
import json
import logging
import os
import sys
import types
from typing import List, NamedTuple

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.data.datasets import cityscapes
from detectron2.utils.file_io import PathManager

from ..errors import UserError, printable
from .datasets import registered

_IMAGE = "leftImg8bit.png"
# Suffixes of the files that Detectron2 reads for each image of Cityscapes.
_CITYSCAPES_FILES = {
    "cityscapes_instance": ("instanceIds.png", "labelIds.png", "polygons.json"),
    "cityscapes_sem_seg": (
        *("instanceIds.png", "labelIds.png", "polygons.json", "labelTrainIds.png"),
    ),
}
_FREQUENCIES = ("r", "c", "f")
_FEDERATED = ("neg_category_ids", "not_exhaustive_category_ids")


def check_layouts(cfg: CfgNode, eval_only: bool) -> None:
    """Check the files of the LVIS, Pascal VOC and Cityscapes data sets that are used."""
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
    """Check the keys that ``lvis`` groups by; a data set without annotations is not evaluated."""
    try:
        with PathManager.open(path) as f:
            content = json.load(f)
    except ValueError as e:
        raise UserError(f"{path} is not JSON: {e}") from None
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
            raise UserError(
                f"{folder} is not a folder; the image folder must have only folders of cities"
            )
        for image in PathManager.ls(folder):
            if not image.endswith(_IMAGE):
                raise UserError(
                    f"{os.path.join(folder, image)} is not an image *_{_IMAGE}; remove it"
                )
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


# ---- packages ----


logger = logging.getLogger(__name__)


class Package(NamedTuple):
    """A package of Python.

    Args:
        module (str): its name for ``import``.
        install (str): the command that installs it.
    """

    module: str
    install: str

    def is_missing(self) -> bool:
        return importlib.util.find_spec(self.module) is None


# It asks for opencv-python, which overwrites any other OpenCV; its other imports are here.
LVIS = Package("lvis", "pip install --no-deps lvis")
CITYSCAPES = Package("cityscapesscripts", "pip install cityscapesscripts")
SHAPELY = Package("shapely", "pip install shapely")
# Not on PyPI.
PANOPTIC = Package("panopticapi", "pip install git+https://github.com/cocodataset/panopticapi.git")

_TO_READ = {"lvis": (LVIS,), "cityscapes_instance": (CITYSCAPES, SHAPELY)}
_TO_EVALUATE = {"cityscapes_sem_seg": (CITYSCAPES,)}


# Where Detectron2's main branch of 2026 looks for cityscapesscripts, a folder that is Meta's own.
_FOLDER_OF_META = "deeplearning.projects.cityscapesApi"


def provide_cityscapes() -> None:
    """Let Detectron2's main find cityscapesscripts; 0.6 does by itself."""
    if _FOLDER_OF_META not in inspect.getsource(cityscapes) or _FOLDER_OF_META in sys.modules:
        return
    spec = importlib.util.find_spec(CITYSCAPES.module)
    name, first = "", _FOLDER_OF_META.partition(".")[0]
    if first not in sys.modules and importlib.util.find_spec(first) is not None:
        importlib.import_module(first)  # another package of that name is not replaced
    for part in _FOLDER_OF_META.split("."):
        name = f"{name}.{part}".lstrip(".")
        folder = types.ModuleType(name)
        folder.__path__ = []
        sys.modules.setdefault(name, folder)
    # The folder that the package lies in.
    sys.modules[name].__path__ = [os.path.dirname(p) for p in spec.submodule_search_locations]


def cityscapes_modules(name: str) -> List[str]:
    """Return the names of a module of cityscapesscripts, also that for Detectron2's main."""
    folders = ["", f"{_FOLDER_OF_META}."] if _FOLDER_OF_META in sys.modules else [""]
    return [f"{folder}{CITYSCAPES.module}.{name}" for folder in folders]


def check_packages(dataset_name: str, split: str) -> None:
    """Check that the packages that a data set needs for ``split`` are installed.

    Without ``panopticapi`` there is a warning: everything but the panoptic quality is evaluated.
    Detectron2's main branch is shown where the package of Cityscapes is.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    needed = _TO_READ.get(kind, ()) + (_TO_EVALUATE.get(kind, ()) if split == "TEST" else ())
    for package in needed:
        if package.is_missing():
            raise UserError(
                f"DATASETS.{split}: {dataset_name} needs the package {package.module}; install "
                f"it: {package.install}"
            )
    if CITYSCAPES in needed:
        provide_cityscapes()
    if split == "TEST" and kind == "coco_panoptic_seg" and PANOPTIC.is_missing():
        logger.warning(
            f"DATASETS.TEST: of {dataset_name}, boxes, masks and stuff are evaluated, but not the "
            f"panoptic quality, which needs {PANOPTIC.module}; install it: {PANOPTIC.install}"
        )
