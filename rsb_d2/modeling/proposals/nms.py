"""What ends the RPN and the box head, without waiting for a GPU where that can be helped."""

from typing import Tuple

import torch
from detectron2.layers import batched_nms
from torchvision.ops import nms

# Above it torchvision takes the groups one by one on a GPU, with an NMS for each.
_MOST_AT_ONCE = 25_000


def nms_of_groups(
    boxes: torch.Tensor, scores: torch.Tensor, groups: torch.Tensor, threshold: float
) -> torch.Tensor:
    """Detectron2's ``batched_nms``.

    It moves each group's boxes to a place of their own, by an offset that a number from the CPU
    takes part in, which the GPU would be waited for.

    Args:
        boxes (Tensor): (N, 4), float32, x0, y0, x1, y1.
        scores (Tensor): (N,).
        groups (Tensor): (N,), integers: levels or classes.
        threshold (float): of the IoU.

    Returns:
        Tensor: indices of those that stay, best first.
    """
    if boxes.device.type == "cpu" or not 0 < len(boxes) <= _MOST_AT_ONCE:
        return batched_nms(boxes, scores, groups, threshold)
    return _at_once(boxes, scores, groups, threshold)


def _at_once(
    boxes: torch.Tensor, scores: torch.Tensor, groups: torch.Tensor, threshold: float
) -> torch.Tensor:
    return nms(boxes + (groups.to(boxes) * (boxes.max() + 1))[:, None], scores, threshold)


def clip(boxes: torch.Tensor, image_size: Tuple[int, int]) -> torch.Tensor:
    """As ``Boxes.clip``, without looking whether they are finite, for which a GPU is waited for.

    Args:
        boxes (Tensor): (N, 4), x0, y0, x1, y1 in pixels.
        image_size (tuple[int, int]): height and width.

    Returns:
        Tensor: (N, 4).
    """
    height, width = image_size
    x, y = boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)
    return torch.stack([x, y], dim=2).flatten(1)
