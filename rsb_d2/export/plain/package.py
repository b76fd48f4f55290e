"""From a detector to a folder for plain Detectron2, which has been run before it is there."""

import json
import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Iterator, List, Tuple

import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import DefaultPredictor
from torch import nn

from ...checkpoint.writing import save_weights
from ...data.class_names import ClassNames
from ...errors import UserError
from ...predict.predictor import Predictor
from ..comparison import Difference
from ..contract import score_threshold
from .config import dataset_names, dump_differences, plain_config
from .reasons import check_is_plain
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
        difference (Difference): from the model.
        sizes (list[tuple[int, int]]): height and width of the images it was compared on.
    """

    folder: str
    metadata: List[str]
    difference: Difference
    sizes: List[Tuple[int, int]]

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
        model (nn.Module): in evaluation mode, on the CPU.
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
    check_is_plain(cfg, model)
    check_folder(folder)
    datasets = dataset_names(cfg, classes, f"{os.path.basename(os.path.abspath(folder))}_classes")
    metadata = _metadata_lines(datasets, classes)
    expected = _run_model(cfg, model, classes, images)
    weights = os.path.join(os.path.abspath(folder), WEIGHTS)
    plain = plain_config(cfg, weights, datasets)
    with _whole_folder(folder) as temporary:
        _write(os.path.join(temporary, CONFIG), dump_differences(plain))
        _write(os.path.join(temporary, CLASSES), _describe(classes, metadata))
        save_weights(os.path.join(temporary, WEIGHTS), plain_weights(model))
        difference = _compare(temporary, cfg, images, expected, folder)
    return Package(folder, metadata, difference, [image.shape[:2] for image in images])


def check_folder(folder: str) -> None:
    """Raise a :class:`UserError` unless ``folder`` is one that a package can be written to."""
    path = os.path.abspath(folder)
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


def _run_model(
    cfg: CfgNode, model: nn.Module, classes: ClassNames, images: List[np.ndarray]
) -> List[dict]:
    predictor = Predictor(cfg, model, classes)
    with torch.no_grad():
        outputs = [model([predictor.prepare(image)])[0] for image in images]
    if not any(len(output["instances"]) for output in outputs):
        raise UserError(
            f"nothing is detected in the {len(images)} images to compare on, with scores of "
            f"{score_threshold(cfg)} or more: give others with --images"
        )
    return outputs


def _compare(
    temporary: str, cfg: CfgNode, images: List[np.ndarray], expected: List[dict], folder: str
) -> Difference:
    """Run the package as its users will, but on the CPU, as the model was."""
    plain = get_cfg()
    plain.merge_from_file(os.path.join(temporary, CONFIG), allow_unsafe=False)
    plain.MODEL.WEIGHTS = os.path.join(temporary, WEIGHTS)
    plain.MODEL.DEVICE = "cpu"
    predictor = DefaultPredictor(plain)
    total = Difference()
    for image, outputs in zip(images, expected):
        found = predictor(np.ascontiguousarray(image[:, :, ::-1]))
        try:
            total.add(
                compare_outputs(
                    outputs, found, score_threshold(cfg), cfg.TEST.DETECTIONS_PER_IMAGE
                )
            )
        except UserError as e:
            height, width = image.shape[:2]
            raise UserError(
                f"{folder} was not written, as it differs from the model on an image of "
                f"{width} x {height}: {e}"
            ) from None
    return total


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)


@contextmanager
def _whole_folder(folder: str) -> Iterator[str]:
    """A folder that takes its place when the block ends, and is gone if the block fails.

    Yields:
        str: where to write.

    Raises:
        UserError: if it cannot be written.
    """
    path = os.path.abspath(folder)
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        os.mkdir(temporary)
        yield temporary
        os.rename(temporary, path)  # onto nothing, or onto an empty folder
    except OSError as e:
        raise UserError(f"cannot write {folder}: {e.strerror or e}") from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
