"""A detector as a function from tensors to tensors, for the exporters of torch.

It is the graph of :func:`rsb_d2.addons.accelerate.static_detector`, for one image or a batch.
"""

from typing import Tuple

import torch
from torch import nn

from ..accelerate import StaticDetector, static_detector

OUTPUTS = ("boxes", "scores", "classes", "masks")


def make_traceable(
    model: nn.Module, size: Tuple[int, int] | None = None, batch_size: int | None = None
) -> nn.Module:
    """Wrap a detector for export.

    Args:
        model (nn.Module): as for :func:`rsb_d2.addons.accelerate.static_detector`, on the CPU; its
            parameters must not require gradients.
        size (tuple[int, int] or None): height and width of the images; any by default.
        batch_size (int or None): number of images of a batch; one image by default.

    Returns:
        nn.Module: its ``forward`` takes a uint8 image of shape (H, W, 3), the channels as in
        ``INPUT.FORMAT``, and returns, best first, boxes (N, 4) as x0, y0, x1, y1 in pixels of
        that image, scores (N,), classes (N,) from 0 on, and, of a model with masks, their
        probabilities in the box (N, 28, 28). With a batch size, the inputs and the outputs are
        those of :class:`rsb_d2.addons.accelerate.StaticDetector`, the latter as a tuple. Its
        ``input_names``, ``output_names`` and ``inputs`` from an image are for the exporters.

    Raises:
        UserError: for a model or a part of it that has no form with fixed shapes.
    """
    if batch_size is not None:
        return _Batch(static_detector(model, size, batch_size)).eval()
    return _OneImage(static_detector(model, size)).eval()


class _OneImage(nn.Module):
    input_names, output_names = ("image",), OUTPUTS

    def __init__(self, detector: StaticDetector):
        super().__init__()
        self.detector = detector

    def inputs(self, image: torch.Tensor) -> Tuple[torch.Tensor, ...]:
        return (image,)

    def forward(self, image: torch.Tensor) -> Tuple[torch.Tensor, ...]:
        ones = torch.ones_like(image[:, :, 0], dtype=torch.long)
        sizes = torch.stack([ones[:, 0].sum(), ones[0].sum()])[None]  # of any size, in any exporter
        outputs = self.detector.forward(image.permute(2, 0, 1)[None], sizes)
        num = outputs["num_detections"]
        is_found = torch.arange(outputs["scores"].shape[1]) < num
        return tuple(outputs[name][0][is_found] for name in OUTPUTS if name in outputs)


class _Batch(_OneImage):
    input_names = ("images", "sizes")
    output_names = (*OUTPUTS[:3], "num_detections", "is_exact", "masks")

    def inputs(self, image: torch.Tensor) -> Tuple[torch.Tensor, ...]:
        return self.detector.stack([image.permute(2, 0, 1)] * self.detector.batch_size)

    def forward(self, images: torch.Tensor, sizes: torch.Tensor) -> Tuple[torch.Tensor, ...]:
        outputs = self.detector.forward(images, sizes)
        return tuple(outputs[name] for name in self.output_names if name in outputs)
