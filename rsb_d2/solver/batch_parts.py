"""What a part of a batch needs to know of the whole: its padding, and what losses are divided by.

Only so are the gradients of the parts together those of the batch.
"""

from contextlib import contextmanager
from typing import Iterator, List, Tuple

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils.events import get_event_storage
from torch import nn
from torch.nn import functional as F


class PaddingToBatch:
    """Lets a detector pad the images of a part as it would pad those of the whole batch.

    Detectron2 pads to the largest image at hand, and layers with a bias or a norm make something
    of the padding. A model without a backbone, such as a classifier, has images of one size; and
    one that segments stuff pads its ground truth to the size of the part, so it is left alone.

    Args:
        model (nn.Module): not wrapped; its backbone gets a hook that does nothing outside of
            :meth:`to_size_of`.
    """

    def __init__(self, model: nn.Module):
        self._size: Tuple[int, int] | None = None
        self._divisor = 0
        self._is_used = hasattr(model, "backbone") and not hasattr(model, "sem_seg_head")
        if self._is_used:
            self._divisor = getattr(model.backbone, "size_divisibility", 0)
            model.backbone.register_forward_pre_hook(self._pad)

    @contextmanager
    def to_size_of(self, batch: List[dict]) -> Iterator[None]:
        """Pad to the largest height and width of a batch until the block ends."""
        if self._is_used:
            divisor = max(self._divisor, 1)
            sizes = zip(*(item["image"].shape[-2:] for item in batch))
            self._size = tuple(-(-max(size) // divisor) * divisor for size in sizes)
        try:
            yield
        finally:
            self._size = None

    @torch.compiler.disable
    def _pad(self, module: nn.Module, inputs: Tuple[torch.Tensor]) -> Tuple[torch.Tensor] | None:
        images = inputs[0]
        if self._size is None or tuple(images.shape[-2:]) == self._size:
            return None
        bottom, right = (max(a - b, 0) for a, b in zip(self._size, images.shape[-2:]))
        return (F.pad(images, (0, right, 0, bottom)), *inputs[1:])


class EqualWeights:
    """Each part counts for its share: the losses are means over images.

    Args:
        num_parts (int): of a batch.
    """

    def __init__(self, num_parts: int):
        self._num_parts = num_parts

    def after_forward(self, num_images: int) -> Tuple[float, float]:
        """Call it once for each part, in order.

        Args:
            num_images (int): of the part.

        Returns:
            float, float: what to multiply the losses of this part with, and the gradients of the
            parts before it.
        """
        return 1 / self._num_parts, 1.0


class DenseWeights:
    """The losses of a RetinaNet or FCOS are sums, divided by a number of positive anchors.

    Stock models divide by a running average, into which each forward pass counts; this project's
    ``OpenMMLabRetinaNet`` by the number itself. Either is known of the whole batch only after the
    last part's forward pass. Until then the gradients are those of sums divided by what the first
    part was divided by, times the number of parts; then they are scaled.

    Args:
        model (DenseDetector): in whose ``loss_normalizer`` the running average is, if it has one.
        num_parts (int): of a batch.
    """

    # Detectron2's default in DenseDetector._ema_update.
    _MOMENTUM = 0.9

    def __init__(self, model: DenseDetector, num_parts: int):
        self._model = model
        self._num_parts = num_parts
        self._num_done = 0
        self._num_positive = 0
        self._before: float | None = None  # the running average
        self._provisional = 1.0

    def after_forward(self, num_images: int) -> Tuple[float, float]:
        """As of :class:`EqualWeights`; leaves the model's running average as a whole batch does."""
        mean_of_part, _ = get_event_storage().latest()["num_pos_anchors"]
        num_positive = round(mean_of_part * num_images)
        count = max(num_positive, 1)
        divisor = getattr(self._model, "loss_normalizer", count)
        if not self._num_done:
            self._before = (divisor - (1 - self._MOMENTUM) * count) / self._MOMENTUM
            self._provisional = divisor * self._num_parts
        self._num_done += 1
        self._num_positive += num_positive
        if self._num_done < self._num_parts:
            self._restore()
            return divisor / self._provisional, 1.0
        self._restore()
        whole = self._model._ema_update(
            "loss_normalizer", max(self._num_positive, 1), self._before, self._MOMENTUM
        )
        return divisor / whole, self._provisional / whole

    def _restore(self) -> None:
        if hasattr(self._model, "loss_normalizer"):
            self._model.loss_normalizer = self._before


def part_weights(model: nn.Module, num_parts: int) -> EqualWeights | DenseWeights:
    """What the parts of one batch count for.

    Args:
        model (nn.Module): not wrapped, before the first part's forward pass.
        num_parts (int): of the batch.
    """
    if isinstance(model, DenseDetector):
        return DenseWeights(model, num_parts)
    return EqualWeights(num_parts)
