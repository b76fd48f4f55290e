"""Gradient accumulation: the parts of a batch share properties of the complete batch.

The parts know the padding and the divisor of the losses of the complete batch. Otherwise their
gradients together would not be the gradients of the batch.
"""

from contextlib import contextmanager
from typing import Iterator, List, Tuple

import torch
from detectron2.config import CfgNode
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils.events import get_event_storage
from torch import nn
from torch.nn import functional as F

from ..errors import UserError


def check_accumulation(cfg: CfgNode, world_size: int) -> None:
    """Check that ``SOLVER.ACCUMULATE_STEPS`` divides each process's share of the batch."""
    solver = cfg.SOLVER
    steps, reference = solver.ACCUMULATE_STEPS, solver.REFERENCE_WORLD_SIZE
    # Detectron2 scales the batch with the number of processes if REFERENCE_WORLD_SIZE is set.
    batch = solver.IMS_PER_BATCH * world_size // reference if reference else solver.IMS_PER_BATCH
    if steps > 1 and batch % (steps * world_size):
        many = f", of {world_size} processes" if world_size > 1 else ""
        raise UserError(
            f"SOLVER.ACCUMULATE_STEPS is {steps}{many}: SOLVER.IMS_PER_BATCH, the complete batch, "
            f"must be a multiple of {steps * world_size}, and is {batch}"
        )


class PaddingToBatch:
    """A hook that pads the images of a part to the padded size of the complete batch.

    Detectron2 pads to the largest image of its input, and layers with a bias or a norm compute
    non-zero values from the padding. A model without a backbone, such as a classifier, has images
    of one size. A model that segments stuff pads its ground truth to the size of the part, so its
    images are not padded further.

    Args:
        model (nn.Module): not wrapped; its backbone gets a forward pre-hook that does nothing
            outside of :meth:`to_size_of`.
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
    """Weights of parts whose losses are means over images: one share each.

    Args:
        num_parts (int): of a batch.
    """

    def __init__(self, num_parts: int):
        self._num_parts = num_parts

    def after_forward(self, num_images: int) -> Tuple[float, float]:
        """Return the weights of a part; call it once for each part, in order.

        Args:
            num_images (int): images in the part.

        Returns:
            float, float: the factor for the losses of this part, and the factor for the gradients
            of all earlier parts.
        """
        return 1 / self._num_parts, 1.0


class DenseWeights:
    """Weights for RetinaNet and FCOS, whose losses are divided by a number of positive anchors.

    Stock models divide by a running average that each forward pass updates; this project's
    ``OpenMMLabRetinaNet`` divides by the number itself. For the complete batch, both are known only
    after the last part's forward pass. Until then, all gradients are divided by the first part's
    divisor times the number of parts; the last part corrects them.

    Args:
        model (DenseDetector): has its running average, if any, in ``loss_normalizer``.
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
        """As :meth:`EqualWeights.after_forward`; updates the running average once a batch."""
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
        of_batch = self._model._ema_update(
            "loss_normalizer", max(self._num_positive, 1), self._before, self._MOMENTUM
        )
        return divisor / of_batch, self._provisional / of_batch

    def _restore(self) -> None:
        if hasattr(self._model, "loss_normalizer"):
            self._model.loss_normalizer = self._before


def part_weights(model: nn.Module, num_parts: int) -> EqualWeights | DenseWeights:
    """Return the weights of the parts of one batch, before the first part's forward pass."""
    if isinstance(model, DenseDetector):
        return DenseWeights(model, num_parts)
    return EqualWeights(num_parts)
