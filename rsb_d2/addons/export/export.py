"""From a detector to a file that has been run, and found to compute the same."""

import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Dict, List, Tuple

import numpy as np
from detectron2.config import CfgNode
from PIL import Image
from torch import nn

from ...data.class_names import ClassNames
from ...errors import UserError, is_utf8
from ...files import whole_file
from ...predictor import Predictor
from .comparison import Detections, Difference, compare
from .contract import input_contract, pad_color
from .dataflow import make_dataflow, smallest_side
from .formats import format_of
from .images import fit
from .running import Detector, on_cpu, run_model


@dataclass
class Exported:
    """What :func:`export_detector` did.

    Args:
        path (str): the file.
        files (list[str]): it, and what belongs to it.
        contract (dict[str, str]): its metadata.
        sizes (list[tuple[int, int]]): height and width of the images it was compared on.
        difference (Difference): from the PyTorch model.
    """

    path: str
    files: List[str]
    contract: Dict[str, str]
    sizes: List[Tuple[int, int]]
    difference: Difference


def export_detector(
    cfg: CfgNode,
    model: nn.Module,
    classes: ClassNames,
    path: str,
    images: List[np.ndarray],
    size: Tuple[int, int] | None = None,
) -> Exported:
    """Write a detector to a file, unless the file does not compute what the detector does.

    Args:
        cfg (CfgNode): of the model.
        model (nn.Module): in evaluation mode; its parameters will not require gradients any
            more. Of one on a GPU a copy on the CPU is exported, for files that run anywhere.
        classes (ClassNames): of the model.
        path (str): ends in ``.onnx``, in ``.pt2`` for ``torch.export``, or in ``.xml`` for
            OpenVINO, whose weights are in a ``.bin`` file next to it.
        images (list[ndarray]): to compare on: uint8 (H, W, 3), channels as in ``INPUT.FORMAT``.
            The first is also compared lying on its side and at two thirds of its size, so that
            there is more than one size.
        size (tuple[int, int] or None): height and width in pixels of the images that the file
            takes; any by default.

    Returns:
        Exported

    Raises:
        UserError: if the model or the path cannot be used; if the file and the model differ, or
            if nothing was detected, so that nothing could be compared. Nothing is written then,
            and a file that was there before is left.
    """
    kind = format_of(path)
    model = on_cpu(model)
    traceable = kind.wrap(model.requires_grad_(False))
    contract = input_contract(cfg, classes, size)
    if size is not None:
        turned = np.ascontiguousarray(np.rot90(images[0]))
        sized = [fit(image, size, pad_color(cfg)) for image in (*images, turned)]
    else:
        if kind.wrap is make_dataflow:
            contract["input_min_side"] = str(smallest_side(model))
        predictor = Predictor(cfg, model, classes)
        sized = [_resized(predictor, image) for image in images]
        sized = _of_several_sizes(sized, int(contract["input_min_side"]))
    expected = [run_model(model)(image) for image in sized]
    if not any(len(detections) for detections in expected):
        raise UserError(
            f"nothing is detected in the {len(images)} images to compare on, with scores of "
            f"{contract['score_threshold']} or more: give others with --images"
        )
    contents = kind.write(traceable, sized[0], contract, size is not None)
    files = [path[: -len(kind.endings[0])] + ending for ending in kind.endings]
    with ExitStack() as stack:
        names = []
        for file, content in zip(files, contents):
            f = stack.enter_context(whole_file(file))
            f.write(content)
            f.flush()
            names.append(f.name)
        difference = _compare_all(kind.load(*names), sized, expected, contract, path)
    return Exported(path, files, contract, [image.shape[:2] for image in sized], difference)


def check_output(path: str, size: Tuple[int, int] | None = None) -> None:
    """Raise a :class:`UserError` unless ``path`` is one that a file can be exported to.

    Args:
        path (str): as for :func:`export_detector`.
        size (tuple[int, int] or None): as for :func:`export_detector`.
    """
    if not format_of(path).can_fix_size and size is not None:
        raise UserError(f"--image-size: {path} takes images of any size; .onnx and .xml can fix it")
    folder = os.path.dirname(os.path.abspath(path))
    if not is_utf8(os.path.abspath(path)):  # the only names that ONNX Runtime and torch take
        raise UserError(f"--output: the name {os.path.abspath(path)} is not UTF-8; name another")
    if os.path.isdir(path):
        raise UserError(f"--output: {path} is a folder: name a file in it")
    if not os.path.isdir(folder):
        raise UserError(f"--output: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise UserError(f"--output: cannot write to the folder {folder}")


def _of_several_sizes(images: List[np.ndarray], min_side: int) -> List[np.ndarray]:
    for image in images:
        height, width = image.shape[:2]
        if min(height, width) < min_side:
            raise UserError(
                f"an image to compare on is resized to {width} x {height}, but the file takes "
                f"sides of {min_side} pixels or more: give others with --images, or raise "
                "INPUT.MIN_SIZE_TEST and INPUT.MAX_SIZE_TEST"
            )
    first = Image.fromarray(images[0])
    smaller = first.resize([max(min_side, side * 2 // 3) for side in first.size])
    return [*images, np.array(first.transpose(Image.Transpose.ROTATE_90)), np.array(smaller)]


def _resized(predictor: Predictor, image: np.ndarray) -> np.ndarray:
    return predictor.prepare(image)["image"].permute(1, 2, 0).contiguous().numpy()


def _compare_all(
    detector: Detector,
    images: List[np.ndarray],
    expected: List[Detections],
    contract: Dict[str, str],
    path: str,
) -> Difference:
    total = Difference()
    for image, detections in zip(images, expected):
        try:
            found = detector(image)
            total.add(
                compare(
                    detections,
                    found,
                    float(contract["score_threshold"]),
                    int(contract["max_detections"]),
                )
            )
        except UserError as e:
            height, width = image.shape[:2]
            raise UserError(
                f"{path} was not written, as it differs from the model on an image of "
                f"{width} x {height}: {e}"
            ) from None
    return total
