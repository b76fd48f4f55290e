"""The loaders of images with one label each."""

from typing import Iterator

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MapDataset
from detectron2.data.samplers import InferenceSampler, TrainingSampler
from detectron2.utils import comm
from timm.data.distributed_sampler import RepeatAugSampler
from torch.utils.data import Sampler

from ...data.catalog import registered
from ...data.loader import TrainLoader
from ...data.workers import WorkerLoader
from ...errors import UserError
from ...memory import is_pinned_for
from .timm_dataset import sources
from .transforms import ClassificationMapper, build_transform


class RepeatedSampler(Sampler):
    """timm's ``RepeatAugSampler``, epoch after epoch, of a seed: each image several times in a row.

    An epoch has as many images as the data set, rounded down to a multiple of 256 where it has
    more, as there.

    Args:
        num_images (int): of the data set.
        num_repeats (int): how often each comes.
        seed (int): 0 or more.
    """

    def __init__(self, num_images: int, num_repeats: int, seed: int):
        # One stream for all processes, which is shared out batch by batch.
        self._epoch = RepeatAugSampler(
            range(num_images), num_replicas=1, rank=0, num_repeats=num_repeats
        )
        self._seed = seed

    def __iter__(self) -> Iterator[int]:
        number = 0
        while True:
            # timm takes the number of the epoch for the seed of its order.
            words = np.random.SeedSequence((self._seed, number)).generate_state(1)
            self._epoch.set_epoch(int(words[0]))
            yield from self._epoch
            number += 1


def build_sampler(cfg: CfgNode, num_images: int, seed: int) -> Sampler:
    """Build the endless stream of the indices to train on, the same in all processes.

    Args:
        cfg (CfgNode): its ``INPUT.CLASSIFIER.REPEATS`` and ``DATALOADER.SAMPLER_TRAIN``.
        num_images (int): of the data.
        seed (int): of the order.

    Raises:
        UserError: for a sampler that needs boxes.
    """
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise UserError(
            f"DATALOADER.SAMPLER_TRAIN is {cfg.DATALOADER.SAMPLER_TRAIN!r}; an image classifier "
            "has TrainingSampler alone"
        )
    if cfg.INPUT.CLASSIFIER.REPEATS > 1:
        return RepeatedSampler(num_images, cfg.INPUT.CLASSIFIER.REPEATS, seed)
    sampler = TrainingSampler(num_images, seed=seed)
    sampler._rank, sampler._world_size = 0, 1
    return sampler


def mix_group(cfg: CfgNode, batch_size: int) -> int:
    """How many images of a batch share one draw of Mixup or CutMix; 0 if there is none.

    Args:
        cfg (CfgNode): its ``INPUT.CLASSIFIER`` and ``SOLVER.ACCUMULATE_STEPS``.
        batch_size (int): of all processes together.

    Raises:
        UserError: if the batch cannot be shared out so that what is mixed is computed together.
    """
    keys, num_parts = cfg.INPUT.CLASSIFIER, cfg.SOLVER.ACCUMULATE_STEPS
    if not (keys.MIXUP_ALPHA or keys.CUTMIX_ALPHA):
        return 0
    group = min(keys.MIX_GROUP, batch_size) or batch_size
    shared_by = 2 * comm.get_world_size() * num_parts
    if group % shared_by or batch_size % group:
        if group == batch_size:
            what = f"the batch of {batch_size} images, SOLVER.IMS_PER_BATCH,"
        else:
            what = f"INPUT.CLASSIFIER.MIX_GROUP {group}"
        of_batch = "" if group == batch_size else f" and a divisor of the batch of {batch_size}"
        raise UserError(
            f"images are mixed in pairs: {what} must be a multiple of {shared_by}, twice the "
            f"number of processes and of SOLVER.ACCUMULATE_STEPS {num_parts}{of_batch}"
        )
    return group


def build_train_loader(cfg: CfgNode) -> TrainLoader:
    """Build the loader of an image classifier's training.

    Args:
        cfg (CfgNode): its ``DATASETS.TRAIN``, ``DATALOADER``, ``INPUT.CLASSIFIER``, ``SEED``,
            ``SOLVER.IMS_PER_BATCH`` and ``.ACCUMULATE_STEPS``.

    Returns:
        TrainLoader: of batches of ``{"image", "label", "file_name", ...}``, with ``mix_seed``
        where images are mixed.

    Raises:
        UserError: as :class:`TrainLoader`, :func:`build_sampler` and :func:`mix_group`.
    """
    records = [record for name in cfg.DATASETS.TRAIN for record in registered(name)()]
    batch_size = cfg.SOLVER.IMS_PER_BATCH
    return TrainLoader(
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
    """Build the loader of an evaluation: this process's share of the images, each once.

    Args:
        cfg (CfgNode): its ``INPUT.CLASSIFIER`` and ``DATALOADER.NUM_WORKERS``.
        dataset_name (str): a registered data set.

    Returns:
        WorkerLoader: of lists of ``{"image", "label", "file_name", ...}``.
    """
    records = DatasetFromList(registered(dataset_name)(), copy=False)
    mapper = ClassificationMapper(build_transform(cfg, is_train=False), sources([dataset_name]))
    return WorkerLoader(
        MapDataset(records, mapper),
        batch_size=cfg.INPUT.CLASSIFIER.TEST_BATCH,
        sampler=InferenceSampler(len(records)),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=_same,
        generator=torch.Generator(),  # the default one would take from the training's numbers
    )


def _same(batch: list) -> list:
    return batch
