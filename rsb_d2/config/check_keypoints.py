"""The keys of keypoints against the data: how many there are, their sigmas, and flips."""

import logging
from typing import List

from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog

from ..errors import UserError, first
from ..evaluation.coco_evaluation import keypoint_sigmas

logger = logging.getLogger(__name__)

_KEY = "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"


def resolve_keypoints(cfg: CfgNode, eval_only: bool) -> None:
    """Take the number of keypoints from the data, and check the keys that depend on them.

    Args:
        cfg (CfgNode): its data sets are registered. Where ``NUM_KEYPOINTS`` has Detectron2's
            default, 17, it is set to the number of the data, with a message. Nothing is done
            without ``MODEL.KEYPOINT_ON``.
        eval_only (bool): leave out what only training reads.

    Raises:
        UserError: as :func:`check_keypoints`.
    """
    if not cfg.MODEL.KEYPOINT_ON:
        return
    head = cfg.MODEL.ROI_KEYPOINT_HEAD
    names = _names(cfg, eval_only)
    is_default = head.NUM_KEYPOINTS == get_cfg().MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
    if names and is_default and head.NUM_KEYPOINTS != len(names):
        head.NUM_KEYPOINTS = len(names)
        logger.info(f"{_KEY} is {len(names)}: the data has the keypoints {first(names, 20)}.")
    check_keypoints(cfg, eval_only)
    if names and not len(cfg.TEST.KEYPOINT_OKS_SIGMAS):
        sigmas = keypoint_sigmas((), len(names))
        logger.info(f"TEST.KEYPOINT_OKS_SIGMAS is empty; the sigmas are {first(sigmas, 20)}.")
    if not eval_only and cfg.INPUT.RANDOM_FLIP == "horizontal" and len(names) > 1:
        if not MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).keypoint_flip_map:
            logger.warning(
                "INPUT.RANDOM_FLIP is horizontal, but the names of the keypoints do not tell left "
                "from right, so a flipped object keeps them as they are. Where that is wrong, "
                "write DATASETS.KEYPOINT_FLIP_PAIRS [[left name, right name], ...] or "
                "INPUT.RANDOM_FLIP none."
            )


def check_keypoints(cfg: CfgNode, eval_only: bool = False) -> None:
    """Check the keys of keypoints against the metadata of the data sets.

    Args:
        cfg (CfgNode): its data sets are registered; not changed.
        eval_only (bool): leave out what only training reads.

    Raises:
        UserError: if a data set does not name its keypoints, or the data sets differ in them; if
            ``NUM_KEYPOINTS`` or the number of sigmas is another.
    """
    if not cfg.MODEL.KEYPOINT_ON:
        return
    names = _names(cfg, eval_only)
    if not names:
        return
    num_keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
    if num_keypoints != len(names):
        raise UserError(
            f"{_KEY} is {num_keypoints}, but the data has {len(names)} keypoints "
            f"({first(names)}); write {_KEY} {len(names)}"
        )
    sigmas = keypoint_sigmas(cfg.TEST.KEYPOINT_OKS_SIGMAS, len(names))
    if not all(sigma > 0 for sigma in sigmas):
        raise UserError(
            f"TEST.KEYPOINT_OKS_SIGMAS is {list(sigmas)}; each value must be a number above 0"
        )
    if eval_only:
        return
    for name in cfg.DATASETS.TRAIN:
        pairs = MetadataCatalog.get(name).get("keypoint_flip_map")
        if pairs is None:
            raise UserError(
                f"DATASETS.TRAIN: the metadata of {name} has no keypoint_flip_map; set it to pairs "
                "of names, or to [] if a flip changes no keypoint into another"
            )


def _names(cfg: CfgNode, eval_only: bool) -> List[str]:
    """The names of the keypoints, which the data to train on must have; empty if unknown."""
    train = () if eval_only else cfg.DATASETS.TRAIN
    found = {}
    for name in (*train, *cfg.DATASETS.TEST):
        names = MetadataCatalog.get(name).get("keypoint_names")
        if names:
            found[name] = list(names)
        elif name in train:
            raise UserError(
                f"MODEL.KEYPOINT_ON: data set {name} does not name its keypoints; set "
                f"MetadataCatalog.get({name!r}).keypoint_names, or write MODEL.KEYPOINT_ON False"
            )
    one = next(iter(found), None)
    for name, names in found.items():
        if names != found[one]:
            raise UserError(
                f"MODEL.KEYPOINT_ON: {one} and {name} must have the same keypoints, in the same "
                f"order; they are {first(found[one])} and {first(names)}"
            )
    return found.get(one, [])
