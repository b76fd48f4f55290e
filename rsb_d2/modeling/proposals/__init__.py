"""How proposals and detections are chosen, without waiting for a GPU where that can be helped."""

from .nms import clip, nms_of_groups
from .rpn import ChoosingRPN

__all__ = ["ChoosingRPN", "clip", "nms_of_groups"]
