"""The order of training: which image is at which place, as a function of the seed alone."""

import itertools
from typing import Iterator, List, Sequence, Tuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.samplers import (
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from torch.utils.data import Sampler

from ..errors import UserError
from .coco_records import CocoRecords, JoinedRecords
from .detection_records import repeat_factors
from .images import BadImageError, image_size

# What DATALOADER.SAMPLER_TRAIN may name.
SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler")

# A place in the stream of the sampler, counted from 0, and the index of the record there.
Place = Tuple[int, int]


def build_sampler(cfg: CfgNode, records: Sequence[dict], seed: int) -> Sampler:
    """Build the training sampler of Detectron2 that ``DATALOADER.SAMPLER_TRAIN`` names.

    Args:
        cfg (CfgNode): its ``DATALOADER``.
        records (Sequence[dict]): in Detectron2's dataset format.
        seed (int): of the shuffling.

    Returns:
        Sampler[int]: the endless stream of all processes; each sees the whole of it.

    Raises:
        UserError: if there is no such sampler.
    """
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name == "TrainingSampler":
        sampler = TrainingSampler(len(records), seed=seed)
    elif name == "RepeatFactorTrainingSampler":
        threshold, options = cfg.DATALOADER.REPEAT_THRESHOLD, {}
        if "REPEAT_SQRT" in cfg.DATALOADER:  # of Detectron2's main
            options["sqrt"] = cfg.DATALOADER.REPEAT_SQRT
        if isinstance(records, (CocoRecords, JoinedRecords)):
            factors = repeat_factors(records, threshold, **options)
        else:
            factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
                records, threshold, **options
            )
        sampler = RepeatFactorTrainingSampler(factors, seed=seed)
    elif name == "RandomSubsetTrainingSampler":
        sampler = RandomSubsetTrainingSampler(
            len(records), cfg.DATALOADER.RANDOM_SUBSET_RATIO, seed_shuffle=seed, seed_subset=seed
        )
    else:
        raise UserError(f"DATALOADER.SAMPLER_TRAIN is {name!r}; write {' or '.join(SAMPLERS)}")
    # Detectron2's samplers give each process every N-th index. Here the batches are made before
    # they are shared out, so that their order does not depend on the number of processes.
    sampler._rank, sampler._world_size = 0, 1
    return sampler


class Replacements:
    """Draws a record in the place of another one of its group, however many records there are.

    Args:
        groups (bytes): the group of each record.
    """

    def __init__(self, groups: bytes):
        self._groups = groups
        of_record = np.frombuffer(groups, dtype=np.uint8)
        self._members = {group: np.flatnonzero(of_record == group) for group in set(groups)}

    def draw(self, index: int) -> int:
        """Draw by torch's random numbers, each with the same chance.

        Args:
            index (int): of a record.

        Returns:
            int: of another one; of the same where it is alone in its group.
        """
        members = self._members[self._groups[index]]
        drawn = int(torch.randint(max(len(members) - 1, 1), ()))
        # The members ascend: from the record on, the one drawn of the others is the next one.
        if members[drawn] >= index and len(members) > 1:
            drawn += 1
        return int(members[drawn])


def share_of_batch(
    batch_size: int, rank: int, world_size: int, mix_group: int = 0
) -> Sequence[int]:
    """The places in a batch that one process takes.

    Args:
        batch_size (int): of all processes together; a multiple of ``world_size``.
        rank (int): of the process.
        world_size (int): number of processes.
        mix_group (int): of so many neighbours each process takes some from the front and as many
            from the back, the partners of those: the first is mixed with the last, the second with
            the last but one. A multiple of twice ``world_size`` and a divisor of ``batch_size``; 0
            if nothing is mixed, and each process takes neighbours.
    """
    if not mix_group:
        share = batch_size // world_size
        return range(rank * share, (rank + 1) * share)
    half = mix_group // (2 * world_size)
    places: List[int] = []
    for start in range(0, batch_size, mix_group):
        front, end = start + rank * half, start + mix_group - rank * half
        places += [*range(front, front + half), *range(end - half, end)]
    return places


class TrainingOrder(Sampler):
    """The places that one process loads, in order, from a given batch on.

    The images of a batch, of all processes together, have the same group. In one process the
    order is that of Detectron2's ``AspectRatioGroupedDataset``; more processes share out the
    batches of one.

    Args:
        sampler (Sampler[int]): an endless stream of indices, as of :func:`build_sampler`.
        groups (Sequence[int]): the group of each record, from 0 on.
        total_batch_size (int): images in a batch, in all processes together.
        rank (int): of this process.
        world_size (int): number of processes; a divisor of ``total_batch_size``.
        mix_group (int): as of :func:`share_of_batch`.
        num_parts (int): what is mixed must be in the same one of so many equal parts of the
            process's share, too.

    Attributes:
        num_skipped (int): how many batches to leave out at the beginning.
    """

    def __init__(
        self,
        sampler: Sampler,
        groups: Sequence[int],
        total_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        mix_group: int = 0,
        num_parts: int = 1,
    ):
        if total_batch_size < 1 or total_batch_size % world_size:
            raise UserError(
                f"SOLVER.IMS_PER_BATCH is {total_batch_size}: it must be a multiple of the number "
                f"of processes, which is {world_size}"
            )
        self._sampler = sampler
        self._groups = groups
        self._total_batch_size = total_batch_size
        self._share: Sequence[int] = share_of_batch(total_batch_size, rank, world_size)
        if mix_group:  # each part is the share of a process among more of them
            parts = range(rank * num_parts, (rank + 1) * num_parts)
            shares = (
                share_of_batch(total_batch_size, part, world_size * num_parts, mix_group)
                for part in parts
            )
            self._share = [place for share in shares for place in share]
        self.num_skipped = 0

    def __iter__(self) -> Iterator[Place]:
        for batch in itertools.islice(self.batches(), self.num_skipped, None):
            yield from (batch[i] for i in self._share)

    def batches(self) -> Iterator[List[Place]]:
        """The places of each batch, of all processes together, from the first batch on."""
        waiting = {}
        for place in enumerate(self._sampler):
            group = self._groups[place[1]]
            batch = waiting.setdefault(group, [])
            batch.append(place)
            if len(batch) == self._total_batch_size:
                yield waiting.pop(group)


def group_seeds(seed: int, first: int, num_images: int, group_share: int) -> List[Tuple[int, int]]:
    """List the seed of each image that a process has of a batch; images of a group have the same.

    Args:
        seed (int): of the training, 0 or more.
        first (int): number of the batch's first group, counted from the start of the training.
        num_images (int): images that the process has.
        group_share (int): consecutive images of one group.
    """
    return [(seed, first + i // group_share) for i in range(num_images)]


def is_high(record: dict) -> bool:
    """Whether an image is at least as high as wide: images of a batch are alike in this.

    Args:
        record (dict): in Detectron2's dataset format; without ``width`` and ``height``, the header
            of its image is read. One that cannot be read is reported when its turn comes.
    """
    if "width" in record and "height" in record:
        return record["width"] <= record["height"]
    try:
        width, height = image_size(record["file_name"])
    except BadImageError:
        return False
    return width <= height


def are_high(records: Sequence[dict]) -> bytes:
    """Of each record, as 0 or 1, what :func:`is_high` says; those of a cache are not made for it.

    Args:
        records (sequence of dict): N of them.

    Returns:
        bytes: N.
    """
    if isinstance(records, (CocoRecords, JoinedRecords)):
        height, width = records.sizes().T
        return (width <= height).astype("uint8").tobytes()
    return bytes(map(is_high, records))
