"""Mixup and CutMix by timm, drawn from a seed rather than from where the process happens to be."""

from contextlib import contextmanager
from itertools import groupby
from typing import Iterator, Sequence, Tuple

import numpy as np
import torch
from timm.data import Mixup

# What a group of images is mixed by: the seed of the training, and the group's number in the data.
MixSeed = Tuple[int, ...]


class SeededMixup:
    """timm's ``Mixup`` of each group of images in a batch.

    Within a group the first image is mixed with the last, the second with the last but one, and so
    on, by one draw.
    """

    def __init__(self, mixup: Mixup):
        """
        Args:
            mixup (timm.data.Mixup): in its mode ``"batch"``; it smooths the labels, too.
        """
        self.mixup = mixup

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor, seeds: Sequence[MixSeed]
    ) -> torch.Tensor:
        """
        Args:
            images (Tensor): (N, C, H, W), normalised; mixed in place.
            labels (Tensor): (N,), class indices.
            seeds (sequence of MixSeed): of each image; the images of a group, which are neighbours
                and of an even number, have the same.

        Returns:
            Tensor: (N, classes), the shares of the classes, smoothed.
        """
        targets, start = [], 0
        for seed, group in groupby(seeds):
            end = start + len(list(group))
            with _numpy_seeded(seed):
                targets.append(self.mixup(images[start:end], labels[start:end])[1])
            start = end
        return torch.cat(targets)


@contextmanager
def _numpy_seeded(seed: MixSeed) -> Iterator[None]:
    """timm draws from NumPy's global state, which is put back at the end."""
    before = np.random.get_state()
    np.random.seed(np.random.SeedSequence(seed).generate_state(4))
    try:
        yield
    finally:
        np.random.set_state(before)
