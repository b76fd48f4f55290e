"""From a detector to a folder for plain Detectron2, which has been run before it is there."""

import json
import os
from dataclasses import dataclass
from typing import Any, Dict, List, Tuple

import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import DefaultPredictor
from torch import nn

from ....checkpoint.reading import StateDict
from ....checkpoint.writing import save_weights
from ....data.class_names import ClassNames
from ....errors import UserError, is_utf8
from ....files import whole_folder
from ....predictor import Predictor
from ..comparison import Difference
from ..contract import score_threshold
from ..running import on_cpu
from .config import dataset_names, dump_differences, plain_config
from .reasons import check_is_plain
from .rounding import without_order
from .same import compare_outputs
from .weights import plain_weights

CONFIG, WEIGHTS, CLASSES = "config.yaml", "model_final.pth", "classes.json"
_FILE_ENDINGS = (".onnx", ".pt2", ".ts", ".pth", ".xml")


@dataclass
class Package:
    """What :func:`export_package` did.

    Args:
        folder (str): where the three files are.
        metadata (list[str]): lines of Python that give Detectron2 the names of the classes.
        num_images (int): on how many it was compared with the model.
        difference (Difference): from the model.
        num_rounded (int): images on which the two differ by more than they may, but only by the
            rounding of float32; ``difference`` is without it there.
    """

    folder: str
    metadata: List[str]
    num_images: int
    difference: Difference
    num_rounded: int

    @property
    def usage(self) -> List[str]:
        """list[str]: lines of Python that run the package where there is Detectron2 alone."""
        return [
            "from detectron2.config import get_cfg",
            "from detectron2.engine import DefaultPredictor",
            *self.metadata,
            "cfg = get_cfg()",
            f"cfg.merge_from_file({os.path.join(self.folder, CONFIG)!r})",
            f"cfg.MODEL.WEIGHTS = {os.path.join(self.folder, WEIGHTS)!r}",
            "predictor = DefaultPredictor(cfg)  # takes BGR, as of cv2.imread",
        ]


def export_package(
    cfg: CfgNode,
    model: nn.Module,
    classes: ClassNames,
    folder: str,
    images: List[np.ndarray],
) -> Package:
    """Write a detector for Detectron2, unless Detectron2 does not detect what the detector does.

    The folder gets ``config.yaml`` with Detectron2's own keys alone, ``model_final.pth`` for its
    ResNet, FPN and heads, taking BGR, and ``classes.json``.

    Args:
        cfg (CfgNode): of the model.
        model (nn.Module): in evaluation mode; one on a GPU is copied to the CPU.
        classes (ClassNames): of the model.
        folder (str): where nothing is yet, or an empty folder.
        images (list[ndarray]): to compare on: uint8 (H, W, 3), channels as in ``INPUT.FORMAT``.

    Returns:
        Package

    Raises:
        UserError: if Detectron2 has not what the model is made of, if the folder cannot be
            written, if the two differ, or if nothing is detected, so that nothing can be
            compared. There is no folder then.
    """
    model = on_cpu(model)
    check_is_plain(cfg, model)
    check_folder(folder)
    datasets = dataset_names(cfg, classes, f"{os.path.basename(os.path.abspath(folder))}_classes")
    metadata = _metadata_lines(datasets, classes)
    weights = os.path.join(os.path.abspath(folder), WEIGHTS)
    plain = plain_config(cfg, weights, datasets)
    with whole_folder(folder) as temporary:
        _write(os.path.join(temporary, CONFIG), dump_differences(plain))
        _write(os.path.join(temporary, CLASSES), _describe(classes, metadata))
        # With the names beside them, for this project's own programs.
        names = {"class_names": list(classes.names), "class_ids": list(classes.ids)}
        save_weights(os.path.join(temporary, WEIGHTS), plain_weights(model), **names)
        try:
            difference, num_rounded = _compare(temporary, cfg, model, classes, images)
        except UserError as e:
            raise UserError(f"{folder} was not written: {e}") from None
    return Package(folder, metadata, len(images), difference, num_rounded)


def check_folder(folder: str) -> None:
    """Raise a :class:`UserError` unless ``folder`` is one that a package can be written to."""
    path = os.path.abspath(folder)
    if not is_utf8(path):
        raise UserError(f"--output: the name {path} is not UTF-8; name another folder")
    if path.endswith(_FILE_ENDINGS):
        raise UserError(f"--output: {folder} is a file's name; --format detectron2 makes a folder")
    if os.path.lexists(path) and not os.path.isdir(path):
        raise UserError(f"--output: {folder} is a file: name a folder that is not there yet")
    if os.path.isdir(path) and os.listdir(path):
        raise UserError(f"--output: {folder} is not empty: name a folder that is not there yet")
    parent = os.path.dirname(path)
    if not os.path.isdir(parent):
        raise UserError(f"--output: there is no folder {parent}")
    if not os.access(parent, os.W_OK):
        raise UserError(f"--output: cannot write to the folder {parent}")


def _metadata_lines(datasets: Tuple[Tuple[str, ...], ...], classes: ClassNames) -> List[str]:
    names = dict.fromkeys(name for group in datasets for name in group)
    lines = [
        f"MetadataCatalog.get({name!r}).thing_classes = {list(classes.names)!r}" for name in names
    ]
    return ["from detectron2.data import MetadataCatalog", *lines]


def _describe(classes: ClassNames, metadata: List[str]) -> str:
    content = {
        "thing_classes": list(classes.names),
        "category_ids": list(classes.ids),
        "metadata": metadata,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _run(cfg: CfgNode, model: nn.Module, classes: ClassNames, image: np.ndarray) -> Dict[str, Any]:
    predictor = Predictor(cfg, model, classes)
    with torch.no_grad():
        return model([predictor.prepare(image)])[0]


def _compare(
    temporary: str,
    cfg: CfgNode,
    model: nn.Module,
    classes: ClassNames,
    images: List[np.ndarray],
) -> Tuple[Difference, int]:
    """Run the package as its users will, but on the CPU, as the model.

    Returns:
        Difference, int: where float32 tells the two apart, and nothing else does, from the model
        without the rounding; the number of these images.
    """
    plain = get_cfg()
    plain.merge_from_file(os.path.join(temporary, CONFIG), allow_unsafe=False)
    plain.MODEL.WEIGHTS = os.path.join(temporary, WEIGHTS)
    plain.MODEL.DEVICE = "cpu"
    predictor = DefaultPredictor(plain)
    content = torch.load(plain.MODEL.WEIGHTS, weights_only=True)
    _check_names(predictor.model, content["model"])
    limits = score_threshold(cfg), cfg.TEST.DETECTIONS_PER_IMAGE

    def compare_on(image: np.ndarray) -> Difference:
        found = predictor(np.ascontiguousarray(image[:, :, ::-1]))
        return compare_outputs(_run(cfg, model, classes, image), found, *limits)

    total, num_rounded = Difference(), 0
    for image in images:
        try:
            total.add(compare_on(image))
        except UserError as difference:
            try:
                with without_order(model, predictor.model):
                    total.add(compare_on(image))
                num_rounded += 1
            except UserError:
                height, width = image.shape[:2]
                raise UserError(
                    f"it differs from the model on an image of {width} x {height}: {difference}"
                ) from None
    if not total.detections:
        raise UserError(
            f"nothing is detected in the {len(images)} images to compare on, with scores of "
            f"{limits[0]} or more: give others with --images"
        )
    return total, num_rounded


def _check_names(model: nn.Module, weights: StateDict) -> None:
    """Detectron2 itself only warns of weights that do not fit."""
    names = model.state_dict().keys()
    for name in names - weights.keys():
        raise UserError(f"Detectron2's model has {name}, and the weights have no such")
    for name in weights.keys() - names:
        raise UserError(f"the weights have {name}, and Detectron2's model has no such")


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)
