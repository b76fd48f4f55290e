"""The packages that some data sets need, which nothing else here does."""

import importlib
import importlib.util
import inspect
import logging
import os
import sys
import types
from typing import List, NamedTuple

from detectron2.data import MetadataCatalog
from detectron2.data.datasets import cityscapes

from ...errors import UserError

logger = logging.getLogger(__name__)


class Package(NamedTuple):
    """A package of Python.

    Args:
        module (str): what is imported.
        install (str): the command that installs it.
    """

    module: str
    install: str

    def is_missing(self) -> bool:
        return importlib.util.find_spec(self.module) is None


# It asks for opencv-python, which overwrites any other OpenCV; what else it imports is here.
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
        importlib.import_module(first)  # somebody's own package of that name stays what it is
    for part in _FOLDER_OF_META.split("."):
        name = f"{name}.{part}".lstrip(".")
        folder = types.ModuleType(name)
        folder.__path__ = []
        sys.modules.setdefault(name, folder)
    # The folder that the package lies in.
    sys.modules[name].__path__ = [os.path.dirname(p) for p in spec.submodule_search_locations]


def cityscapes_modules(name: str) -> List[str]:
    """The names of a module of cityscapesscripts: its own, and the one for Detectron2's main.

    Args:
        name (str): in the package: ``"helpers.labels"``.
    """
    folders = ["", f"{_FOLDER_OF_META}."] if _FOLDER_OF_META in sys.modules else [""]
    return [f"{folder}{CITYSCAPES.module}.{name}" for folder in folders]


def check_packages(dataset_name: str, split: str) -> None:
    """Check that what a data set is read and evaluated with is installed.

    Without ``panopticapi`` there is a warning: all is evaluated but the panoptic quality. That of
    Cityscapes is made known to Detectron2.

    Args:
        dataset_name (str): a registered data set.
        split (str): ``"TRAIN"`` or ``"TEST"``; the first is not evaluated.

    Raises:
        UserError: if a package is missing; it says how to install it.
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
