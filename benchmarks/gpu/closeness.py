"""Detections of a lower precision beside those of float32, where there is no trained model.

With weights from a seed there is no AP. What can be said is how many of the detections in float32
are found again, and that rounding alone moves some of them; so the share is compared with that of
stock Detectron2 in automatic mixed precision, which is what people use.
"""

from typing import Any, Dict, List

import torch
from detectron2.structures import Instances, pairwise_iou

LEAST_IOU, SCORE_TOLERANCE = 0.9, 0.05
# By so much the share may be below that of stock in mixed precision.
SHARE_TOLERANCE = 0.02


def share_found(expected: List[Instances], found: List[Instances]) -> float:
    """The share of the detections that are found again.

    Args:
        expected, found (list[Instances]): of each image, with ``pred_boxes``, ``scores`` and
            ``pred_classes``, on any device.

    Returns:
        float: of ``expected``, those for which there is one of the same class in ``found``, with
        an IoU of 0.9 at least and a score within 0.05; nan where nothing is expected.
    """
    number = total = 0
    for a, b in zip(expected, found):
        total += len(a)
        if len(a) and len(b):
            fits = pairwise_iou(a.pred_boxes, b.pred_boxes) >= LEAST_IOU
            fits &= a.pred_classes[:, None] == b.pred_classes[None]
            fits &= (a.scores[:, None] - b.scores[None]).abs() <= SCORE_TOLERANCE
            number += int(fits.any(dim=1).sum())
    return number / total if total else float("nan")


def compare_shares(
    expected: List[Instances], mixed: List[Instances], ours: List[Instances], dtype: torch.dtype
) -> Dict[str, Any]:
    """Compare what is found again with stock's share in automatic mixed precision.

    Args:
        expected (list[Instances]): of stock in float32.
        mixed (list[Instances]): of stock in mixed precision.
        ours (list[Instances]): of the optimized model.
        dtype (torch.dtype): of both.

    Returns:
        dict: ``passed`` and ``text``, as a report has them.
    """
    share, of_mixed = share_found(expected, ours), share_found(expected, mixed)
    name = str(dtype).removeprefix("torch.")
    return {
        "passed": share >= of_mixed - SHARE_TOLERANCE,
        "text": (
            f"of stock's {sum(map(len, expected))} detections in float32, of weights from a seed, "
            f"{100 * share:.1f} % are found again in {name} (IoU {LEAST_IOU} and score within "
            f"{SCORE_TOLERANCE}), of stock in mixed precision {100 * of_mixed:.1f} % "
            f"({100 * SHARE_TOLERANCE:.0f} points below that allowed); with --weights it is the AP"
        ),
    }
