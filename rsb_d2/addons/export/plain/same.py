"""Whether a detector of Detectron2 finds in an image what the one that it was made from does."""

from typing import Any, Dict

import numpy as np
import torch

from ....errors import UserError
from ..comparison import Detections, Difference, compare

BOX_TOLERANCE = 1e-3  # pixels of the image; also of keypoints
SCORE_TOLERANCE = 1e-5
# Where a mask's probability is 1/2 to the last digits, rounding decides; of a mask's pixels.
MASK_TOLERANCE = 1e-3
_FEW_PIXELS = 2

Outputs = Dict[str, Any]


def compare_outputs(
    expected: Outputs, found: Outputs, score_threshold: float, max_detections: int
) -> Difference:
    """Compare what two models found in one image.

    Args:
        expected (dict): what a detector of Detectron2 returns for an image, of the model.
        found (dict): of the package.
        score_threshold (float): below which the two leave out detections.
        max_detections (int): of which the two keep the best.

    Returns:
        Difference: its ``mask`` is the largest share of a mask's pixels, or of a segmentation's.

    Raises:
        UserError: if scores differ by more than 1e-5, boxes or keypoints by more than 1e-3 pixels,
            masks or segmentations by more than 1/1000 of their pixels, or detections are missing.
    """
    instances, others = expected["instances"], found["instances"]
    pairs = []
    difference = compare(
        _detections(instances),
        _detections(others),
        score_threshold,
        max_detections,
        BOX_TOLERANCE,
        SCORE_TOLERANCE,
        pairs,
    )
    for i, j in pairs:
        one, other = instances[i], others[j]
        if one.has("pred_masks"):
            share = _share(one.pred_masks[0], other.pred_masks[0])
            difference.mask = max(difference.mask, share)
        if one.has("pred_keypoints"):
            apart = (one.pred_keypoints - other.pred_keypoints).abs()[0, :, :2].max()
            difference.box = max(difference.box, float(apart))
    difference.mask = max(difference.mask, _segmentation_share(expected, found))
    if difference.box > BOX_TOLERANCE:
        raise UserError(f"a keypoint is {difference.box:.2g} pixels off")
    if difference.mask > MASK_TOLERANCE:
        raise UserError(f"{difference.mask:.2%} of the pixels of a mask or segmentation differ")
    return difference


def _detections(instances) -> Detections:
    return Detections(
        instances.pred_boxes.tensor.numpy(),
        instances.scores.numpy(),
        instances.pred_classes.numpy(),
    )


def _share(one: torch.Tensor, other: torch.Tensor) -> float:
    count = int((one != other).sum())
    return count / max(int((one | other).sum()), 1) if count > _FEW_PIXELS else 0.0


def _segmentation_share(expected: Outputs, found: Outputs) -> float:
    if "sem_seg" not in expected:
        return 0.0
    one, other = (np.asarray(o["sem_seg"].argmax(dim=0)) for o in (expected, found))
    return float((one != other).mean())
