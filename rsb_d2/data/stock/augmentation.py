"""The augmentation of a config: Detectron2's own, and large-scale jitter."""

import inspect
from typing import List

from detectron2.config import CfgNode
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T

# Of the labels of what was padded. Detectron2's main pads with it, as its data sets ignore it.
_IGNORED_LABEL = 255


class FixedSizeCrop(T.FixedSizeCrop):
    """Detectron2 0.6's, which pads a map of labels with class 0, as its main branch does it."""

    def _get_pad(self, image):
        pad = super()._get_pad(image)
        pad.seg_pad_value = _IGNORED_LABEL
        return pad


if "seg_pad_value" in inspect.signature(T.FixedSizeCrop.__init__).parameters:
    FixedSizeCrop = T.FixedSizeCrop


def build_augmentation(cfg: CfgNode, is_train: bool) -> List[T.Augmentation]:
    """Build what resizes, crops and flips the images.

    Args:
        cfg (CfgNode): its ``INPUT``. With ``INPUT.LSJ.ENABLED``, training images are jittered in
            scale as those of Detectron2's ``new_baselines``, and ``INPUT.MIN_SIZE_TRAIN``,
            ``.MAX_SIZE_TRAIN`` and ``.MIN_SIZE_TRAIN_SAMPLING`` are not read.
        is_train (bool): for training.

    Returns:
        list[Augmentation]
    """
    if not (is_train and uses_large_scale_jitter(cfg)):
        return utils.build_augmentation(cfg, is_train)
    lsj, flip = cfg.INPUT.LSJ, cfg.INPUT.RANDOM_FLIP
    augmentations = [
        T.ResizeScale(
            min_scale=lsj.MIN_SCALE,
            max_scale=lsj.MAX_SCALE,
            target_height=lsj.SIZE,
            target_width=lsj.SIZE,
        ),
        FixedSizeCrop(crop_size=(lsj.SIZE, lsj.SIZE)),
    ]
    if flip != "none":
        augmentations.append(
            T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical")
        )
    return augmentations


def uses_large_scale_jitter(cfg: CfgNode) -> bool:
    """Whether ``INPUT.LSJ.ENABLED`` is set; it is not in a config without this project's keys."""
    return "LSJ" in cfg.INPUT and cfg.INPUT.LSJ.ENABLED
