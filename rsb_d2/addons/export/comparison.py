"""Comparing the detections of two models in one image."""

from dataclasses import dataclass
from typing import Any, Dict, List, Tuple

import numpy as np
import torch
from detectron2.structures import Instances

from ...errors import UserError

BOX_TOLERANCE = 0.1  # pixels
SCORE_TOLERANCE = 1e-3  # also of a mask's probabilities
_PACKAGE_BOX = 1e-3  # pixels of the image, also of keypoints; of packages for Detectron2
_PACKAGE_SCORE = 1e-5
# Where a mask's probability is 1/2 to the last digits, rounding decides; of a mask's pixels.
_PACKAGE_MASK = 1e-3
_FEW_PIXELS = 2

Outputs = Dict[str, Any]


@dataclass
class Detections:
    """What was found in one image.

    Args:
        boxes (ndarray): (N, 4), x0, y0, x1, y1 in pixels.
        scores (ndarray): (N,), best first.
        classes (ndarray): (N,), integers.
        masks (ndarray or None): (N, H, W), probabilities in the box.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    masks: np.ndarray | None = None

    @classmethod
    def of(cls, instances: Instances, masks: torch.Tensor | None = None) -> "Detections":
        """Those of a Detectron2 detector, on any device, with masks before they are pasted."""
        values = (instances.pred_boxes.tensor, instances.scores, instances.pred_classes, masks)
        return cls(*(None if value is None else value.cpu().numpy() for value in values))

    def __len__(self) -> int:
        return len(self.scores)


@dataclass
class Difference:
    """The largest differences of detections that count as the same.

    Args:
        detections (int): how many were compared.
        box (float): in pixels.
        score (float): of the scores.
        mask (float): of the masks' probabilities.
    """

    detections: int = 0
    box: float = 0.0
    score: float = 0.0
    mask: float = 0.0

    def add(self, other: "Difference") -> None:
        """Take the larger of each, and the sum of the detections."""
        self.detections += other.detections
        self.box = max(self.box, other.box)
        self.score = max(self.score, other.score)
        self.mask = max(self.mask, other.mask)


def compare(
    expected: Detections,
    found: Detections,
    score_threshold: float = 0.0,
    max_detections: int | None = None,
    box_tolerance: float = BOX_TOLERANCE,
    score_tolerance: float = SCORE_TOLERANCE,
) -> Difference:
    """Pair detections of the same class, and measure how far the pairs are apart.

    A detection without a partner is no mistake only if its score is within the tolerance of the
    threshold, or, in a list that is full, of the lowest score of the list.

    Args:
        expected (Detections): of the model.
        found (Detections): of the exported file.
        score_threshold (float): below which the two leave out detections.
        max_detections (int or None): of which the two keep the best.
        box_tolerance (float): between partners, in pixels.
        score_tolerance (float): between partners, of the score.

    Returns:
        Difference

    Raises:
        UserError: if a detection of one has no partner in the other within the tolerances, or if
            the probabilities of a mask differ by more than 1e-3.
    """
    pairs, lonely, extra = _pair(expected, found, box_tolerance, score_tolerance)
    borders = [score_threshold]
    if max_detections is not None and max(len(expected), len(found)) >= max_detections:
        borders += [d.scores.min() for d in (expected, found) if len(d)]
    for what, detections, indices in (("missing", expected, lonely), ("new", found, extra)):
        for i in indices:
            if min(abs(detections.scores[i] - b) for b in borders) > score_tolerance:
                raise UserError(
                    f"{len(lonely)} of {len(expected)} detections are missing and {len(extra)} are "
                    f"new, {what} for one class {detections.classes[i]}, score "
                    f"{detections.scores[i]:.4f}, box {detections.boxes[i].round(2).tolist()}"
                )
    if not pairs:
        return Difference()
    i, j = np.array(pairs).T
    difference = Difference(
        len(pairs),
        float(np.abs(expected.boxes[i] - found.boxes[j]).max()),
        float(np.abs(expected.scores[i] - found.scores[j]).max()),
    )
    if expected.masks is not None:
        difference.mask = float(np.abs(expected.masks[i] - found.masks[j]).max())
        if difference.mask > SCORE_TOLERANCE:
            raise UserError(f"the probabilities of a mask differ by {difference.mask:.4f}")
    return difference


def _pair(
    expected: Detections, found: Detections, box_tolerance: float, score_tolerance: float
) -> Tuple[List[Tuple[int, int]], List[int], List[int]]:
    """Pairs of indices, best first, and the indices of either that have no partner."""
    pairs, lonely, free = [], [], np.ones(len(found), bool)
    for i in range(len(expected)):
        near = free & (found.classes == expected.classes[i])
        near &= np.abs(found.scores - expected.scores[i]) <= score_tolerance
        distance = np.abs(found.boxes - expected.boxes[i]).max(axis=1, initial=0.0)
        near &= distance <= box_tolerance
        if near.any():
            j = int(np.where(near, distance, np.inf).argmin())
            free[j] = False
            pairs.append((i, j))
        else:
            lonely.append(i)
    return pairs, lonely, np.flatnonzero(free).tolist()


def compare_outputs(
    expected: Outputs, found: Outputs, score_threshold: float, max_detections: int
) -> Difference:
    """Compare the detections of two models in one image.

    Args:
        expected (dict): output of a Detectron2 detector for an image.
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
    detections = Detections.of(instances), Detections.of(others)
    limits = _PACKAGE_BOX, _PACKAGE_SCORE
    difference = compare(*detections, score_threshold, max_detections, *limits)
    for i, j in _pair(*detections, *limits)[0]:
        one, other = instances[i], others[j]
        if one.has("pred_masks"):
            count = int((one.pred_masks != other.pred_masks).sum())
            share = count / max(int((one.pred_masks | other.pred_masks).sum()), 1)
            difference.mask = max(difference.mask, share if count > _FEW_PIXELS else 0.0)
        if one.has("pred_keypoints"):
            apart = (one.pred_keypoints - other.pred_keypoints).abs()[0, :, :2].max()
            difference.box = max(difference.box, float(apart))
    if "sem_seg" in expected:
        one, other = (outputs["sem_seg"].argmax(dim=0) for outputs in (expected, found))
        difference.mask = max(difference.mask, float((one != other).float().mean()))
    if difference.box > _PACKAGE_BOX:
        raise UserError(f"a keypoint is {difference.box:.2g} pixels off")
    if difference.mask > _PACKAGE_MASK:
        raise UserError(f"{difference.mask:.2%} of the pixels of a mask or segmentation differ")
    return difference
