"""From a detector to a file that has been run and computes the same results."""

import json
import logging
import os
import re
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import IO, Dict, List, Tuple

import detectron2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from PIL import Image
from torch import nn

from ...data import register_coco_json
from ...data.class_names import ClassNames
from ...data.images import BadImageError, read_image
from ...errors import UserError, is_utf8
from ...files import whole_file
from ...predictor import Predictor
from ..predict.files import find_images
from ..workbench.sample.draw import draw_picture
from .comparison import Detections, Difference, compare
from .files import TORCH_EXPORT, Detector, format_of, on_cpu, run_model
from .quantization import Int8, Quantized, quantize
from .traceable import make_traceable

logger = logging.getLogger(__name__)

# Shorter sides are not tested.
MIN_SIDE = 32

_NUM_IMAGES = 4


# ---- exporting ----


@dataclass
class Exported:
    """What :func:`export_detector` did.

    Args:
        path (str): the file.
        files (list[str]): it, and the files that belong to it.
        contract (dict[str, str]): its metadata.
        sizes (list[tuple[int, int]]): height and width of the images it was compared on.
        difference (Difference): from the PyTorch model; of a file in int8, before its
            quantization.
        quantized (Quantized or None): of a file in int8.
    """

    path: str
    files: List[str]
    contract: Dict[str, str]
    sizes: List[Tuple[int, int]]
    difference: Difference
    quantized: Quantized | None = None


def export_detector(
    cfg: CfgNode,
    model: nn.Module,
    classes: ClassNames,
    path: str,
    images: List[np.ndarray],
    size: Tuple[int, int] | None = None,
    int8: Int8 | None = None,
    batch_size: int | None = None,
) -> Exported:
    """Write a detector to a file, and check that the file computes the same.

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
        int8 (Int8 or None): to quantize an ``.xml`` file; the float32 file is compared with the
            model first.
        batch_size (int or None): number of images that an ``.onnx`` or ``.xml`` file of a fixed
            size takes at once, without ``int8``; by default, one image, without a dimension for it.

    Returns:
        Exported

    Raises:
        UserError: if the model or the path cannot be used; if the file and the model differ, or
            if nothing was detected, so that nothing could be compared; if the AP of int8 is too
            low. Nothing is written then, and a file that was there before is left.
    """
    kind = format_of(path)
    check_batch_size(batch_size, path, size, int8)
    model = on_cpu(model)
    traceable = make_traceable(model.requires_grad_(False), size, batch_size)
    contract = input_contract(cfg, classes, size)
    if batch_size is not None:
        contract.update(input_layout="batch, channel, height, width", input_batch=str(batch_size))
    if size is not None:
        turned = np.ascontiguousarray(np.rot90(images[0]))
        sized = [fit(image, size, pad_color(cfg)) for image in (*images, turned)]
    else:
        if kind.endings[0] == TORCH_EXPORT:
            # torch.export makes another program for features of one row or column.
            with_anchors = getattr(model, "proposal_generator", model)
            contract["input_min_side"] = str(max(with_anchors.anchor_generator.strides) + 1)
        predictor = Predictor(cfg, model, classes)
        sized = [_resized(predictor, image) for image in images]
        sized = _of_several_sizes(sized, int(contract["input_min_side"]))
    expected = [run_model(model)(image) for image in sized]
    check_compared(sum(map(len, expected)), images, score_threshold(cfg))
    contents = kind.write(traceable, sized[0], contract, size is not None)
    files = [path[: -len(kind.endings[0])] + ending for ending in kind.endings]
    with ExitStack() as stack:
        opened = [stack.enter_context(whole_file(file)) for file in files]
        _fill(opened, contents)
        names = [f.name for f in opened]
        difference = _compare_all(kind.load(*names), sized, expected, contract, path)
        quantized = None
        if int8 is not None:
            quantized = quantize(cfg, int8, *contents, partial(_place, cfg, size))
            _fill(opened, (quantized.xml, quantized.weights))
    sizes = [image.shape[:2] for image in sized]
    return Exported(path, files, contract, sizes, difference, quantized)


def check_compared(number: int, images: List[np.ndarray], threshold: float) -> None:
    """Raise a :class:`UserError` if no detection was found in the images to compare on."""
    if not number:
        raise UserError(
            f"nothing is detected in the {len(images)} images to compare on, with scores of "
            f"{threshold} or more: give others with --images"
        )


def _fill(files: List[IO[bytes]], contents: Tuple[bytes, ...]) -> None:
    for f, content in zip(files, contents):
        f.seek(0)
        f.truncate()
        f.write(content)
        f.flush()


def _place(
    cfg: CfgNode, size: Tuple[int, int] | None, image: np.ndarray
) -> Tuple[np.ndarray, Tuple[int, int]]:
    """A resized image as a file of a fixed or any size takes it, and the size of its content."""
    if size is None:
        return image, image.shape[:2]
    return fit(image, size, pad_color(cfg)), fitted_size(image.shape[:2], size)


def check_batch_size(
    batch_size: int | None, path: str, size: Tuple[int, int] | None, int8: object
) -> None:
    """Raise a :class:`UserError` unless ``path`` can be exported with ``--batch-size``.

    Args:
        batch_size, path, size, int8: as for :func:`export_detector`.
    """
    if batch_size is None:
        return
    if batch_size < 1:
        raise UserError(f"--batch-size is {batch_size}; it must be 1 or more")
    if size is None or int8 or path.endswith(TORCH_EXPORT):
        raise UserError(
            "--batch-size needs --image-size and an .onnx or .xml file, and excludes --int8"
        )


def check_output(path: str) -> None:
    """Raise a :class:`UserError` unless ``path`` is one that a file can be exported to.

    Args:
        path (str): as for :func:`export_detector`.
    """
    format_of(path)
    check_parent(path)
    if os.path.isdir(path):
        raise UserError(f"--output: {path} is a folder: name a file in it")


def check_parent(path: str) -> None:
    """Raise a :class:`UserError` unless a file or a folder of this name can be made."""
    path = os.path.abspath(path)
    folder = os.path.dirname(path)
    if not is_utf8(path):  # the only names that ONNX Runtime and torch take
        raise UserError(f"--output: the name {path} is not UTF-8; name another")
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
    limits = float(contract["score_threshold"]), int(contract["max_detections"])
    for image, detections in zip(images, expected):
        try:
            total.add(compare(detections, detector(image), *limits))
        except UserError as e:
            height, width = image.shape[:2]
            raise UserError(
                f"{path} was not written, as it differs from the model on an image of "
                f"{width} x {height}: {e}"
            ) from None
    return total


# ---- the metadata of a file ----


def input_contract(
    cfg: CfgNode, classes: ClassNames, size: Tuple[int, int] | None = None
) -> Dict[str, str]:
    """The metadata of an exported file.

    Args:
        cfg (CfgNode): of the model.
        classes (ClassNames): of the model.
        size (tuple[int, int] or None): height and width, of a file that takes no others.

    Returns:
        dict[str, str]: as ``docs/deployment.md`` describes it.

    Raises:
        UserError: if the model does not take images of three channels.
    """
    if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
        raise UserError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT}; only RGB and BGR can be exported")
    contract = {
        "input_layout": "height, width, channel",
        "input_dtype": "uint8",
        "input_channels": cfg.INPUT.FORMAT,
        "input_normalization": "inside the model",
        **_input_size(cfg, size),
        "resize_filter": "bilinear, as of Pillow, before the model",
        "boxes": "x0, y0, x1, y1 in pixels of the input",
        "classes": "index into class_names",
        "class_names": json.dumps(classes.names, ensure_ascii=False),
        "class_ids": json.dumps(classes.ids),
        "score_threshold": repr(score_threshold(cfg)),
        "max_detections": str(cfg.TEST.DETECTIONS_PER_IMAGE),
        "architecture": cfg.MODEL.META_ARCHITECTURE,
        "made_by": f"rsb_d2, Detectron2 {detectron2.__version__}, torch {torch.__version__}",
    }
    if cfg.MODEL.MASK_ON and not _is_retinanet(cfg):
        contract["masks"] = "probabilities in the box, to be pasted; see docs/deployment.md"
    return contract


def pad_color(cfg: CfgNode) -> Tuple[int, ...]:
    """The color that is nearly 0 after normalization, with which Detectron2 pads.

    Args:
        cfg (CfgNode): of the model.

    Returns:
        tuple[int, ...]: in 0 ... 255, channels as in ``INPUT.FORMAT``.
    """
    return tuple(min(max(round(mean), 0), 255) for mean in cfg.MODEL.PIXEL_MEAN)


def _input_size(cfg: CfgNode, size: Tuple[int, int] | None) -> Dict[str, str]:
    if size is not None:
        color = json.dumps(pad_color(cfg))
        return {"input_height": str(size[0]), "input_width": str(size[1]), "pad_color": color}
    return {
        "input_min_side": str(MIN_SIDE),
        "resize_short_side": str(cfg.INPUT.MIN_SIZE_TEST),
        "resize_long_side_max": str(cfg.INPUT.MAX_SIZE_TEST),
    }


def score_threshold(cfg: CfgNode) -> float:
    """The lowest score of a detection, of the kind of model that a config has."""
    node = cfg.MODEL.RETINANET if _is_retinanet(cfg) else cfg.MODEL.ROI_HEADS
    return float(node.SCORE_THRESH_TEST)


def _is_retinanet(cfg: CfgNode) -> bool:
    return "RetinaNet" in cfg.MODEL.META_ARCHITECTURE


# ---- images to compare on ----


def comparison_images(cfg: CfgNode, inputs: List[str]) -> List[np.ndarray]:
    """Read images that a user names, or else the first of the test data, or else draw some.

    Args:
        cfg (CfgNode): its ``DATASETS`` and ``INPUT.FORMAT``.
        inputs (list[str]): images, folders and globs; may be empty.

    Returns:
        list[ndarray]: uint8 (H, W, 3), channels as in ``INPUT.FORMAT``.

    Raises:
        UserError: if one that is named cannot be read; one of the test data is left out instead,
            with a warning.
    """
    images = []
    for path in [path for path, _ in find_images(inputs)] if inputs else _test_images(cfg):
        try:
            images.append(np.ascontiguousarray(read_image(path, cfg.INPUT.FORMAT)))
        except BadImageError as e:
            if inputs:
                raise UserError(f"--images: cannot read {e.path}: {e.reason}") from None
            logger.warning(f"Not compared on {e.path}: {e.reason}")
    if images:
        return images
    pictures = [draw_picture(np.random.default_rng(i), 640)[0] for i in range(_NUM_IMAGES)]
    return pictures if cfg.INPUT.FORMAT == "RGB" else [p[:, :, ::-1] for p in pictures]


def read_size(text: str) -> Tuple[int, int] | None:
    """Height and width in pixels of ``--image-size``; none if it is empty.

    Raises:
        UserError: if it is not of the form 640x853, or a side is too short.
    """
    if not text:
        return None
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if not match:
        raise UserError(f"--image-size is {text!r}; write height x width, as 640x853")
    size = int(match.group(1)), int(match.group(2))
    if min(size) < MIN_SIDE:
        raise UserError(f"--image-size is {text}; a side must have {MIN_SIDE} pixels or more")
    return size


def fit(image: np.ndarray, size: Tuple[int, int], color: Tuple[int, ...]) -> np.ndarray:
    """Put an image, as large as it goes, into the upper left corner of a canvas.

    Args:
        image (ndarray): uint8 (H, W, 3).
        size (tuple[int, int]): height and width of the canvas.
        color (tuple[int, ...]): of the rest of it.

    Returns:
        ndarray: uint8, of ``size``.
    """
    height, width = fitted_size(image.shape[:2], size)
    canvas = Image.new("RGB", size[::-1], color)
    canvas.paste(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    return np.array(canvas)


def fitted_size(image_size: Tuple[int, int], size: Tuple[int, int]) -> Tuple[int, int]:
    """Height and width of an image in the canvas of :func:`fit`."""
    factor = min(side / own for side, own in zip(size, image_size))
    return tuple(max(1, int(own * factor + 0.5)) for own in image_size)


def _test_images(cfg: CfgNode) -> List[str]:
    try:
        register_coco_json(cfg, eval_only=True)
        records = DatasetCatalog.get(cfg.DATASETS.TEST[0]) if cfg.DATASETS.TEST else []
    except (UserError, OSError, KeyError):
        return []  # the data need not be where the model is exported
    return [r["file_name"] for r in records[:_NUM_IMAGES] if os.path.isfile(r["file_name"])]
