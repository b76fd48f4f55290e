"""torchvision's ``batched_nms`` as it computes on the CPU, in forms that a graph can take.

Of up to 1,000 boxes torchvision shifts the groups (classes, or levels of a pyramid) apart in one
plane, and suppresses all at once; of more it takes the groups one by one. Traced, it always shifts,
which rounds: with 80 classes and 1,333 pixels to 1/128 pixel, so that boxes whose overlap is at the
threshold are kept in one of the two and suppressed in the other.
"""

from contextlib import contextmanager
from typing import Iterator
from unittest import mock

import torch
from torchvision.ops import nms

_NUM_SHIFTED = 1000


@contextmanager
def traceable_nms() -> Iterator[None]:
    """Have Detectron2's ``batched_nms`` traced as it computes untraced."""
    # Detectron2 compares the number of boxes with 40,000, which tracing would fix once for all.
    with (
        mock.patch("torchvision.ops.boxes.batched_nms", batched_nms),
        mock.patch("detectron2.layers.nms.len", lambda boxes: 0),
    ):
        yield


def batched_nms(
    boxes: torch.Tensor, scores: torch.Tensor, groups: torch.Tensor, threshold: float
) -> torch.Tensor:
    """For tracing: of many boxes one group after the other, as ONNX has no NMS in double.

    Args:
        boxes (Tensor): (N, 4), x0, y0, x1, y1; not all negative.
        scores (Tensor): (N,).
        groups (Tensor): (N,), integers from 0 on; boxes of different ones do not suppress.
        threshold (float): of the intersection over union, in 0 ... 1.

    Returns:
        Tensor: (M,), indices of the boxes to keep, best first.
    """
    is_shifted = _is_shifted(groups)
    boxes = torch.where(is_shifted, _shift(boxes, groups), boxes)
    groups = torch.where(is_shifted, torch.zeros_like(groups), groups)
    return _one_by_one(boxes, scores, groups, threshold)


def batched_nms_in_double(
    boxes: torch.Tensor, scores: torch.Tensor, groups: torch.Tensor, threshold: float
) -> torch.Tensor:
    """For ``torch.export``, which takes no loop: as :func:`batched_nms`, all at once."""
    lowest = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).min().double()
    # The rounding of a sum in float32 where there is one; else none that counts.
    apart = torch.where(
        _is_shifted(groups),
        _shift(boxes, groups).double(),
        _shift(boxes.double() - lowest, groups),
    )
    return nms(apart, scores.double(), threshold)


def _is_shifted(groups: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(groups).sum() <= _NUM_SHIFTED


def _shift(boxes: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    extent = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max() + 1
    return boxes + (groups * extent)[:, None]


# A script, as its loop would be unrolled, for the groups of one image, by tracing.
@torch.jit.script_if_tracing
def _one_by_one(
    boxes: torch.Tensor, scores: torch.Tensor, groups: torch.Tensor, threshold: float
) -> torch.Tensor:
    last = int(torch.cat([groups, groups.new_zeros([1])]).max())
    kept = torch.zeros_like(groups)
    for group in range(last + 1):
        indices = (groups == group).nonzero()[:, 0]
        best = torch.ops.torchvision.nms(boxes[indices], scores[indices], threshold)
        # Without the reshape the exporter to ONNX does not know that it has one dimension.
        kept = kept.index_fill(0, indices.index_select(0, best.reshape(-1)), 1)
    keep = kept.nonzero()[:, 0]
    return keep[scores[keep].sort(descending=True)[1]]
