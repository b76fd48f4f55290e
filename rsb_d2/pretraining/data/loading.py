"""Loaders of images with one label each, with timm's transforms."""

import itertools
from functools import partial
from typing import Any, Callable, Dict, Iterator, List

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MapDataset
from detectron2.data.samplers import InferenceSampler, TrainingSampler
from detectron2.utils import comm
from PIL import Image
from timm.data import create_transform
from timm.data.distributed_sampler import RepeatAugSampler
from torch.utils.data import Sampler

from ...data.datasets import registered
from ...data.images import BadImageError, read_rgb
from ...data.loader import TrainingOrder, TrainLoader
from ...data.workers import WorkerLoader
from ...errors import UserError
from ...memory import is_pinned_for
from .timm_datasets import TimmDataset, sources


def build_transform(cfg: CfgNode, is_train: bool) -> Callable[[Image.Image], torch.Tensor]:
    """Build timm's transform of one image: from RGB to a uint8 tensor of shape (3, H, W).

    The model normalizes it. ``MODEL.PIXEL_MEAN`` is the color with which RandAugment fills.
    """
    keys = cfg.INPUT.CLASSIFIER
    mean = tuple(value / 255 for value in cfg.MODEL.PIXEL_MEAN)
    if not is_train:
        return create_transform(
            keys.TEST_SIZE,
            is_training=False,
            interpolation="bilinear" if keys.INTERPOLATION == "random" else keys.INTERPOLATION,
            crop_pct=keys.TEST_CROP_RATIO,
            mean=mean,
            normalize=False,
        )
    return create_transform(
        keys.TRAIN_SIZE,
        is_training=True,
        scale=tuple(keys.CROP_SCALE),
        ratio=tuple(keys.CROP_RATIO),
        hflip=keys.FLIP_PROB,
        color_jitter=keys.COLOR_JITTER or None,
        auto_augment=keys.AUTO_AUGMENT or None,
        interpolation=keys.INTERPOLATION,
        mean=mean,
        normalize=False,
    )


class ClassificationMapper:
    """Converts a record of a data set into an input of the classifier.

    Args:
        transform (callable): of :func:`build_transform`.
        sources (dict[str, TimmDataset]): of :func:`.timm_datasets.sources`, for records without a
            file of their own.
    """

    def __init__(
        self,
        transform: Callable[[Image.Image], torch.Tensor],
        sources: Dict[str, TimmDataset] | None = None,
    ):
        self.transform = transform
        self.sources = sources or {}

    def __call__(self, record: Dict[str, Any]) -> Dict[str, Any]:
        """Read and transform the image of a record, by ``file_name`` or ``dataset`` and ``index``.

        Returns:
            dict: the record with ``image``, RGB, a uint8 tensor of shape (3, H, W).

        Raises:
            BadImageError: if the image cannot be used, see :func:`rsb_d2.data.images.read_rgb`.
        """
        open_file = None
        if "index" in record:
            open_file = partial(self.sources[record["dataset"]].open_image, record["index"])
        image = read_rgb(record["file_name"], open_file)
        try:
            return {**record, "image": self.transform(image)}
        except (ValueError, TypeError, OSError, ZeroDivisionError) as e:
            size = f"{image.width} x {image.height}"
            reason = f"it cannot be transformed ({type(e).__name__}, {e}), of {size} pixels"
            raise BadImageError(record["file_name"], reason) from None


class RepeatedSampler(Sampler):
    """timm's ``RepeatAugSampler`` for endless epochs, seeded: each image several times in a row.

    As in timm, an epoch has as many images as the data set, rounded down to a multiple of 256 if it
    has more.
    """

    def __init__(self, num_images: int, num_repeats: int, seed: int):
        # One stream for all processes, which share each batch.
        self._epoch = RepeatAugSampler(
            range(num_images), num_replicas=1, rank=0, num_repeats=num_repeats
        )
        self._seed = seed

    def __iter__(self) -> Iterator[int]:
        number = 0
        while True:
            # timm uses the number of the epoch as the seed of its order.
            words = np.random.SeedSequence((self._seed, number)).generate_state(1)
            self._epoch.set_epoch(int(words[0]))
            yield from self._epoch
            number += 1


def build_sampler(cfg: CfgNode, num_images: int, seed: int) -> Sampler:
    """Build the endless stream of training indices, which is the same in all processes."""
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise UserError(
            f"DATALOADER.SAMPLER_TRAIN is {cfg.DATALOADER.SAMPLER_TRAIN!r}; an image classifier "
            "has only TrainingSampler"
        )
    if cfg.INPUT.CLASSIFIER.REPEATS > 1:
        return RepeatedSampler(num_images, cfg.INPUT.CLASSIFIER.REPEATS, seed)
    sampler = TrainingSampler(num_images, seed=seed)
    sampler._rank, sampler._world_size = 0, 1
    return sampler


def mix_group(cfg: CfgNode, batch_size: int) -> int:
    """Return the number of images that share the parameters of Mixup or CutMix; 0 without mixing.

    A batch that cannot be divided so that mixed images are in the same process is an error.
    """
    keys, num_parts = cfg.INPUT.CLASSIFIER, cfg.SOLVER.ACCUMULATE_STEPS
    if not (keys.MIXUP_ALPHA or keys.CUTMIX_ALPHA):
        return 0
    group = min(keys.MIX_GROUP, batch_size) or batch_size
    shared_by = 2 * comm.get_world_size() * num_parts
    if group % shared_by or batch_size % group:
        if group == batch_size:
            number = f"the batch of {batch_size} images, SOLVER.IMS_PER_BATCH,"
        else:
            number = f"INPUT.CLASSIFIER.MIX_GROUP {group}"
        of_batch = "" if group == batch_size else f" and a divisor of the batch of {batch_size}"
        raise UserError(
            f"images are mixed in pairs: {number} must be a multiple of {shared_by}, twice the "
            f"number of processes and of SOLVER.ACCUMULATE_STEPS {num_parts}{of_batch}"
        )
    return group


def share_of_batch(batch_size: int, rank: int, world_size: int, mix_group: int) -> List[int]:
    """Return the positions in a batch that one process takes.

    Args:
        batch_size (int): of all processes together; a multiple of ``world_size``.
        rank, world_size (int): of the process, and number of processes.
        mix_group (int): number of neighbors that are mixed, the first with the last, the second
            with the last but one. Each process takes positions from the front and their partners
            from the back. A multiple of twice ``world_size`` and a divisor of ``batch_size``.
    """
    half = mix_group // (2 * world_size)
    places: List[int] = []
    for start in range(0, batch_size, mix_group):
        front, end = start + rank * half, start + mix_group - rank * half
        places += [*range(front, front + half), *range(end - half, end)]
    return places


class MixedTrainLoader(TrainLoader):
    """The loader of a training that mixes images in pairs, whose groups have one ``mix_seed`` each.

    Args:
        args, kwargs: of :class:`TrainLoader`.
        mix_group (int): number of neighbors in a batch that are mixed; 0 if nothing is mixed.
        num_parts (int): number of equal parts of a process's share of a batch; images that are
            mixed are in the same one.
    """

    def __init__(self, *args: Any, mix_group: int, num_parts: int, **kwargs: Any):
        self._mix_group, self._num_parts = mix_group, num_parts
        super().__init__(*args, **kwargs)

    def finish(self, batch: List[dict]) -> None:
        if not self._mix_group:
            return
        first = self._num_batches * self._total_batch_size // self._mix_group
        share = self._mix_group // (comm.get_world_size() * self._num_parts)
        number = len(batch) // self._num_parts
        seeds = [(self._seed, first + i // share) for i in range(number)]
        for image, seed in zip(batch, seeds * self._num_parts):
            image["mix_seed"] = seed

    def first_images(self, num_images: int) -> List[dict]:
        """Load some of the first images, as training does, in this process; bad ones are left out.

        With ``mix_group``, ``num_images`` is a multiple of 8, and the images are from the first
        groups: of each, 4 from its front and 4 from its back, or fewer of a small one.
        """
        group, places, of_group = self._mix_group, range(num_images), num_images
        if group:
            of_group = min(8, group)
            ends = [*range(of_group // 2), *range(group - of_group // 2, group)]
            starts = range(0, num_images // of_group * group, group)
            places = [start + i for start in starts for i in ends]
        order = TrainingOrder(self._build_sampler(self._seed), self._groups, self._total_batch_size)
        stream = itertools.chain.from_iterable(order.batches())
        stream = list(itertools.islice(stream, max(places) + 1))
        records = self._mapped_records()
        images = []
        for number, place in enumerate(places):
            image, _ = records[stream[place]]
            if image is None:
                continue
            if group:
                image["mix_seed"] = self._seed, number // of_group
            images.append(image)
        return images

    def _order(self) -> TrainingOrder:
        order, rank, num_parts = super()._order(), comm.get_rank(), self._num_parts
        if self._mix_group:  # each part is the share of a process among more of them
            world_size = comm.get_world_size() * num_parts
            parts = range(rank * num_parts, (rank + 1) * num_parts)
            shares = (
                share_of_batch(self._total_batch_size, part, world_size, self._mix_group)
                for part in parts
            )
            order.share = [place for share in shares for place in share]
        return order


def build_train_loader(cfg: CfgNode) -> MixedTrainLoader:
    """Build the loader of an image classifier's training.

    Its batches are of ``{"image", "label", "file_name", ...}``, with ``mix_seed`` if images are
    mixed.
    """
    records = [record for name in cfg.DATASETS.TRAIN for record in registered(name)()]
    batch_size = cfg.SOLVER.IMS_PER_BATCH
    return MixedTrainLoader(
        records,
        ClassificationMapper(build_transform(cfg, is_train=True), sources(cfg.DATASETS.TRAIN)),
        lambda seed: build_sampler(cfg, len(records), seed),
        total_batch_size=batch_size,
        aspect_ratio_grouping=False,
        mix_group=mix_group(cfg, batch_size),
        num_parts=cfg.SOLVER.ACCUMULATE_STEPS,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        pin_memory=is_pinned_for(cfg.MODEL.DEVICE),
        max_bad_images=cfg.DATALOADER.MAX_BAD_IMAGES,
        seed=cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed(),
    )


def build_test_loader(cfg: CfgNode, dataset_name: str) -> WorkerLoader:
    """Build the loader of an evaluation, with this process's share of the images."""
    records = DatasetFromList(registered(dataset_name)(), copy=False)
    mapper = ClassificationMapper(build_transform(cfg, is_train=False), sources([dataset_name]))
    return WorkerLoader(
        MapDataset(records, mapper),
        batch_size=cfg.INPUT.CLASSIFIER.TEST_BATCH,
        sampler=InferenceSampler(len(records)),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=_identity,
        generator=torch.Generator(),  # the default one would advance the training's random state
    )


def _identity(batch: list) -> list:
    return batch
