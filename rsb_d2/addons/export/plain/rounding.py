"""The one sum that a package takes in another order than its model: over the channels of a pixel.

In float32 another order rounds otherwise, in the seventh digit. Fifty layers later that is the
sixth or fifth of a score, and now and then another one of two boxes that suppress each other.
"""

from contextlib import ExitStack, contextmanager
from typing import Iterator
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn


@contextmanager
def without_order(*models: nn.Module) -> Iterator[None]:
    """Have models sum over the channels of the image in double, where their order is no matter.

    Args:
        models (nn.Module): detectors with an FPN; the first convolution of what is below it takes
            the image.
    """
    with ExitStack() as stack:
        for model in models:
            bottom_up = model.backbone.bottom_up
            conv = next(m for m in bottom_up.modules() if isinstance(m, nn.Conv2d))
            stack.enter_context(mock.patch.object(conv, "forward", _in_double(conv)))
        yield


def _in_double(conv: nn.Conv2d):
    def forward(image: torch.Tensor) -> torch.Tensor:
        weight = conv.weight.double()
        x = F.conv2d(image.double(), weight, None, conv.stride, conv.padding).float()
        norm = getattr(conv, "norm", None)  # of Detectron2's Conv2d
        return x if norm is None else norm(x)

    return forward
