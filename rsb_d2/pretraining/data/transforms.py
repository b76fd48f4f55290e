"""From a record to an image and its label, by timm's transforms."""

from functools import partial
from typing import Any, Callable, Dict

import torch
from detectron2.config import CfgNode
from PIL import Image
from timm.data import create_transform

from ...data.images import BadImageError, read_rgb
from .timm_dataset import TimmDataset


def build_transform(cfg: CfgNode, is_train: bool) -> Callable[[Image.Image], torch.Tensor]:
    """Build timm's transform of one image.

    Args:
        cfg (CfgNode): its ``INPUT.CLASSIFIER`` and ``MODEL.PIXEL_MEAN``, the colour of what
            RandAugment moves into the picture.
        is_train (bool): with augmentation; without it the image is resized and cut.

    Returns:
        callable: from an RGB image to (3, H, W) of uint8: the model normalises.
    """
    keys = cfg.INPUT.CLASSIFIER
    mean = tuple(value / 255 for value in cfg.MODEL.PIXEL_MEAN)
    if not is_train:
        return create_transform(
            keys.TEST_SIZE,
            is_training=False,
            interpolation="bilinear" if keys.INTERPOLATION == "random" else keys.INTERPOLATION,
            crop_pct=keys.TEST_CROP_RATIO,
            mean=mean,
            normalize=False,
        )
    return create_transform(
        keys.TRAIN_SIZE,
        is_training=True,
        scale=tuple(keys.CROP_SCALE),
        ratio=tuple(keys.CROP_RATIO),
        hflip=keys.FLIP_PROB,
        color_jitter=keys.COLOR_JITTER or None,
        auto_augment=keys.AUTO_AUGMENT or None,
        interpolation=keys.INTERPOLATION,
        mean=mean,
        normalize=False,
    )


class ClassificationMapper:
    """From a record of a data set to what the classifier takes.

    Args:
        transform (callable): of :func:`build_transform`.
        sources (dict[str, TimmDataset]): by name, those whose records have an ``index`` into them
            and no file of their own; of :func:`rsb_d2.pretraining.data.timm_dataset.sources`.
    """

    def __init__(
        self,
        transform: Callable[[Image.Image], torch.Tensor],
        sources: Dict[str, TimmDataset] | None = None,
    ):
        self.transform = transform
        self.sources = sources or {}

    def __call__(self, record: Dict[str, Any]) -> Dict[str, Any]:
        """Read an image and transform it.

        Args:
            record (dict): with ``file_name``, and ``dataset`` and ``index`` where that is no
                file; not changed.

        Returns:
            dict: the record, and ``image``, (3, H, W) of uint8, RGB.

        Raises:
            BadImageError: if the image cannot be used, see :func:`rsb_d2.data.images.read_rgb`.
        """
        open_file = None
        if "index" in record:
            open_file = partial(self.sources[record["dataset"]].open_image, record["index"])
        image = read_rgb(record["file_name"], open_file)
        try:
            return {**record, "image": self.transform(image)}
        except (ValueError, TypeError, OSError, ZeroDivisionError) as e:
            size = f"{image.width} x {image.height}"
            reason = f"it cannot be transformed ({type(e).__name__}, {e}), of {size} pixels"
            raise BadImageError(record["file_name"], reason) from None
