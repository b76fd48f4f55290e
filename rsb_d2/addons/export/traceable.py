"""A detector as a function from an image tensor to tensors, for the exporters of torch.

It is the graph of :func:`rsb_d2.addons.accelerate.static_detector`, for one image.
"""

from typing import Tuple

import torch
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from torch import nn

from ..accelerate import StaticDetector, static_detector

OUTPUTS = ("boxes", "scores", "classes", "masks")


def make_traceable(model: nn.Module, size: Tuple[int, int] | None = None) -> nn.Module:
    """Wrap a detector for export.

    Args:
        model (nn.Module): as for :func:`rsb_d2.addons.accelerate.static_detector`, on the CPU; its
            parameters must not require gradients.
        size (tuple[int, int] or None): height and width of the images; any by default.

    Returns:
        nn.Module: its ``forward`` takes a uint8 image of shape (H, W, 3), the channels as in
        ``INPUT.FORMAT``, and returns, best first, boxes (N, 4) as x0, y0, x1, y1 in pixels of
        that image, scores (N,), classes (N,) from 0 on, and, of a model with masks, their
        probabilities in the box (N, 28, 28).

    Raises:
        UserError: for a model or a part of it that has no form with fixed shapes.
    """
    return _OneImage(static_detector(model, size)).eval()


def smallest_side(model: nn.Module) -> int:
    """The shortest side, in pixels, that an exported program of any size takes.

    ``torch.export`` makes another program for features of one row or column.
    """
    with_anchors = model if isinstance(model, RetinaNet) else model.proposal_generator
    return max(with_anchors.anchor_generator.strides) + 1


class _OneImage(nn.Module):
    def __init__(self, detector: StaticDetector):
        super().__init__()
        self.detector = detector

    def forward(self, image: torch.Tensor) -> Tuple[torch.Tensor, ...]:
        ones = torch.ones_like(image[:, :, 0], dtype=torch.long)
        sizes = torch.stack([ones[:, 0].sum(), ones[0].sum()])[None]  # of any size, in any exporter
        outputs = self.detector.forward(image.permute(2, 0, 1)[None], sizes)
        num = outputs["num_detections"]
        is_found = torch.arange(outputs["scores"].shape[1]) < num
        return tuple(outputs[name][0][is_found] for name in OUTPUTS if name in outputs)
