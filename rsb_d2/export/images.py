"""The images that an exported file is compared with its model on."""

import os
from typing import List

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from ..data import register_coco_json
from ..data.images import BadImageError, read_image
from ..data.sample.draw import draw_picture
from ..errors import UserError
from ..predict.files import find_images

_NUM_IMAGES = 4


def comparison_images(cfg: CfgNode, inputs: List[str]) -> List[np.ndarray]:
    """Read images that a user names, or else the first of the test data, or else draw some.

    Args:
        cfg (CfgNode): its ``DATASETS`` and ``INPUT.FORMAT``.
        inputs (list[str]): images, folders and globs; may be empty.

    Returns:
        list[ndarray]: uint8 (H, W, 3), channels as in ``INPUT.FORMAT``.

    Raises:
        UserError: if one that is named cannot be read.
    """
    if inputs:
        return [_read(path, cfg.INPUT.FORMAT) for path, _ in find_images(inputs)]
    paths = _test_images(cfg)
    if paths:
        return [_read(path, cfg.INPUT.FORMAT) for path in paths]
    pictures = [draw_picture(np.random.default_rng(i), 640)[0] for i in range(_NUM_IMAGES)]
    return pictures if cfg.INPUT.FORMAT == "RGB" else [p[:, :, ::-1] for p in pictures]


def _read(path: str, image_format: str) -> np.ndarray:
    try:
        return np.ascontiguousarray(read_image(path, image_format))
    except BadImageError as e:
        raise UserError(f"--images: cannot read {e.path}: {e.reason}") from None


def _test_images(cfg: CfgNode) -> List[str]:
    try:
        register_coco_json(cfg, eval_only=True)
        records = DatasetCatalog.get(cfg.DATASETS.TEST[0]) if cfg.DATASETS.TEST else []
    except (UserError, OSError, KeyError):
        return []  # the data need not be where the model is exported
    return [r["file_name"] for r in records[:_NUM_IMAGES] if os.path.isfile(r["file_name"])]
