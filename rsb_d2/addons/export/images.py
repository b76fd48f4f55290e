"""The images that an exported file is compared with its model on."""

import logging
import os
import re
from typing import List, Tuple

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from PIL import Image

from ...data import register_coco_json
from ...data.images import BadImageError, read_image
from ...errors import UserError
from ..predict.files import find_images
from ..workbench.sample.draw import draw_picture
from .contract import MIN_SIDE

logger = logging.getLogger(__name__)

_NUM_IMAGES = 4


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
    height, width = size
    factor = min(height / image.shape[0], width / image.shape[1])
    sides = [max(1, int(side * factor + 0.5)) for side in image.shape[1::-1]]
    canvas = Image.new("RGB", (width, height), color)
    canvas.paste(Image.fromarray(image).resize(sides, Image.Resampling.BILINEAR))
    return np.array(canvas)


def _test_images(cfg: CfgNode) -> List[str]:
    try:
        register_coco_json(cfg, eval_only=True)
        records = DatasetCatalog.get(cfg.DATASETS.TEST[0]) if cfg.DATASETS.TEST else []
    except (UserError, OSError, KeyError):
        return []  # the data need not be where the model is exported
    return [r["file_name"] for r in records[:_NUM_IMAGES] if os.path.isfile(r["file_name"])]
