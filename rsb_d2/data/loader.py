"""The training loader: every batch is a function of the seed and of its number."""

import itertools
import pickle
from typing import Any, Callable, Dict, Iterable, Iterator, List, Sequence, Tuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MapDataset
from detectron2.data.samplers import (
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.utils import comm
from torch.utils.data import Dataset, Sampler

from ..errors import UserError
from ..memory import is_pinned_for
from .coco_records import LazyRecords
from .damaged import without_damaged
from .dataset_dicts import fill_image_ids
from .datasets import detection_records, registered, repeat_factors
from .images import BadImageError, BadImages, image_size
from .mapper import CheckedDatasetMapper
from .random_state import random_state_kept, seed_cpu
from .workers import WorkerLoader

# How many images are drawn for one place before the data is considered to be gone.
_MAX_DRAWN = 10
# Values of DATALOADER.SAMPLER_TRAIN.
SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler")

# A place in the stream of the sampler, counted from 0, and the index of the record there.
Place = Tuple[int, int]


# ---- the order of training ----


def build_sampler(cfg: CfgNode, records: Sequence[dict], seed: int) -> Sampler:
    """Build the training sampler of Detectron2 that ``DATALOADER.SAMPLER_TRAIN`` names.

    It is the endless stream of all processes; each sees all of it.
    """
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name == "TrainingSampler":
        sampler = TrainingSampler(len(records), seed=seed)
    elif name == "RepeatFactorTrainingSampler":
        threshold, options = cfg.DATALOADER.REPEAT_THRESHOLD, {}
        if "REPEAT_SQRT" in cfg.DATALOADER:  # of Detectron2's main
            options["sqrt"] = cfg.DATALOADER.REPEAT_SQRT
        if isinstance(records, LazyRecords):
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
    """Draws a record to replace another one of the same group, in constant time."""

    def __init__(self, groups: bytes):
        self._groups = groups
        of_record = np.frombuffer(groups, dtype=np.uint8)
        self._members = {group: np.flatnonzero(of_record == group) for group in set(groups)}

    def draw(self, index: int) -> int:
        """Draw another record of the group by torch's random numbers, or the only one."""
        members = self._members[self._groups[index]]
        drawn = int(torch.randint(max(len(members) - 1, 1), ()))
        # The members ascend: from the record on, the one drawn of the others is the next one.
        if members[drawn] >= index and len(members) > 1:
            drawn += 1
        return int(members[drawn])


class TrainingOrder(Sampler):
    """The positions that one process loads, in order, from a given batch on.

    The images of a batch, of all processes together, have the same group. In one process the order
    is that of Detectron2's ``AspectRatioGroupedDataset``; several processes divide the batches of
    one.

    Args:
        sampler (Sampler[int]): an endless stream of indices, as of :func:`build_sampler`.
        groups (Sequence[int]): the group of each record, from 0 on.
        total_batch_size (int): images in a batch, in all processes together.
        rank (int): of this process.
        world_size (int): number of processes; a divisor of ``total_batch_size``.

    Attributes:
        share (Sequence[int]): the positions in a batch that this process loads.
        num_skipped (int): how many batches to skip at the beginning.
    """

    def __init__(
        self,
        sampler: Sampler,
        groups: Sequence[int],
        total_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        if total_batch_size < 1 or total_batch_size % world_size:
            raise UserError(
                f"SOLVER.IMS_PER_BATCH is {total_batch_size}: it must be a multiple of the number "
                f"of processes, which is {world_size}"
            )
        self._sampler = sampler
        self._groups = groups
        self._total_batch_size = total_batch_size
        share = total_batch_size // world_size
        self.share: Sequence[int] = range(rank * share, (rank + 1) * share)
        self.num_skipped = 0

    def __iter__(self) -> Iterator[Place]:
        for batch in itertools.islice(self.batches(), self.num_skipped, None):
            yield from (batch[i] for i in self.share)

    def batches(self) -> Iterator[List[Place]]:
        """The places of each batch, of all processes together, from the first batch on."""
        waiting = {}
        for place in enumerate(self._sampler):
            group = self._groups[place[1]]
            batch = waiting.setdefault(group, [])
            batch.append(place)
            if len(batch) == self._total_batch_size:
                yield waiting.pop(group)


def is_portrait(record: dict) -> bool:
    """Whether an image is at least as high as wide; the images of a batch agree in this.

    Without ``width`` and ``height``, the header of the image is read. An unreadable one is reported
    when it is loaded.
    """
    if "width" in record and "height" in record:
        return record["width"] <= record["height"]
    try:
        width, height = image_size(record["file_name"])
    except BadImageError:
        return False
    return width <= height


def aspect_ratio_groups(records: Sequence[dict]) -> bytes:
    """Return :func:`is_portrait` of each record as 0 or 1, without making records if possible."""
    if isinstance(records, LazyRecords):
        height, width = records.sizes().T
        return (width <= height).astype("uint8").tobytes()
    return bytes(map(is_portrait, records))


# ---- the loaders ----


class TrainLoader:
    """An endless stream of batches that continues where another process stopped.

    The images of a batch and their augmentation depend on the seed and on the number of the batch
    only, not on the number of workers or on earlier batches. So the state of the loader is two
    numbers, and no image before a batch is read to continue from it. An image that cannot be read
    is logged and replaced by another one, which also depends on the seed and the position only.

    Args:
        records (sequence of dict): in Detectron2's dataset format; those of an annotation file are
            made by the workers, one at a time.
        mapper (callable): from a record to the input of the model; raises
            :class:`rsb_d2.data.images.BadImageError` for an image that cannot be used, or returns
            ``None`` to have another one drawn.
        build_sampler (callable): from a seed to an endless ``Sampler[int]`` over the records.
        total_batch_size (int): images in a batch, in all processes together.
        aspect_ratio_grouping (bool): whether the images of a batch agree in :func:`is_portrait`.
        num_workers (int): processes that load for this one; 0 loads in this one.
        pin_memory (bool): load into pinned memory, for :func:`rsb_d2.memory.send_images`.
        max_bad_images (int): how many different files may be bad before the training stops.
        seed (int): of order and augmentation, the same in all processes.

    Attributes:
        mapper (callable): as given.
        num_records (int): number of records.
        last_files (list[str]): image files of the last batch of this process.
        bad_images (BadImages): the skipped ones.
        is_ending (callable): whether a signal has asked for the end of the training. Such a signal
            may end workers, too: the last batch is then loaded in this process.

    Raises:
        UserError: if there is no record, or if the batch cannot be divided evenly.
    """

    def __init__(
        self,
        records: Sequence[dict],
        mapper: Callable[[dict], dict],
        build_sampler: Callable[[int], Any],
        *,
        total_batch_size: int,
        aspect_ratio_grouping: bool = True,
        num_workers: int = 0,
        pin_memory: bool = False,
        max_bad_images: int = 100,
        seed: int,
    ):
        if not len(records):
            raise UserError("DATASETS.TRAIN: there is no image to train on")
        self._groups = (
            aspect_ratio_groups(records) if aspect_ratio_grouping else bytes(len(records))
        )
        self._records = records if isinstance(records, LazyRecords) else _serialize(records)
        self.mapper = mapper
        self.num_records = len(records)
        self._build_sampler = build_sampler
        self._total_batch_size = total_batch_size
        self._num_workers = num_workers
        self._pin_memory = pin_memory
        self._seed = seed
        self._num_batches = 0
        self.bad_images = BadImages(max_bad_images)
        self.last_files: List[str] = []
        self.is_ending: Callable[[], bool] = lambda: False
        self._order()  # a batch that cannot be shared out is an error now

    def state_dict(self) -> Dict[str, Any]:
        """Return the state after the last batch that was taken, for :meth:`load_state_dict`."""
        return {
            "seed": self._seed,
            "num_images": self._num_batches * self._total_batch_size,
            "bad_images": dict(self.bad_images.reasons),
        }

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Continue from a state of any number of processes, in iterators that start later."""
        self._seed = state["seed"]
        self._num_batches = -(-state["num_images"] // self._total_batch_size)
        self.bad_images.reasons = dict(state["bad_images"])

    def __iter__(self) -> Iterator[List[dict]]:
        batch_size = self._total_batch_size // comm.get_world_size()
        images = self._images()
        while True:
            loaded = [next(images) for _ in range(batch_size)]
            for _, bad_images in loaded:
                self.bad_images.add(bad_images)
            if self.bad_images.counted_by_loader:
                self.bad_images.count(comm.all_gather(self.bad_images.take()))
            batch = [image for image, _ in loaded]
            if None in batch:
                self._raise_unusable(loaded[batch.index(None)][1])
            self.finish(batch)
            self.last_files = [image["file_name"] for image in batch if "file_name" in image]
            self._num_batches += 1
            yield batch

    def _raise_unusable(self, bad_images: List[Tuple[str, str]]) -> None:
        self.bad_images.count([self.bad_images.take()])  # logs them, if that is still to be done
        why = ": ".join(bad_images[-1]) if bad_images else "the mapper returned None"
        raise UserError(
            f"{_MAX_DRAWN} images, drawn to replace one another, cannot be used; the last "
            f"one: {' '.join(why.split())}"
        )

    def finish(self, batch: List[dict]) -> None:
        """Add to the images of the next batch of this process what depends on its number."""

    def _images(self) -> Iterator[tuple]:
        """The images of the next batches of this process, each with the bad ones before it."""
        records, order, num_loaded = self._mapped_records(), self._order(), 0
        order.num_skipped = self._num_batches
        loader = WorkerLoader(
            records,
            sampler=order,
            batch_size=None,  # one by one, so that the workers share the load of a batch
            collate_fn=_same,
            num_workers=self._num_workers,
            pin_memory=self._pin_memory,
            generator=torch.Generator(),  # the default one would take from the training's numbers
        )
        try:
            for image in loader:
                num_loaded += 1
                yield image
        except RuntimeError as e:
            if not str(e).startswith("DataLoader worker"):
                raise
            if not self.is_ending():
                raise UserError(
                    f"a process that loads images has died ({' '.join(str(e).split())}); where the "
                    "memory was full, fewer DATALOADER.NUM_WORKERS help"
                ) from e
        for place in itertools.islice(order, num_loaded, None):
            yield records[place]

    def _mapped_records(self) -> "_MappedRecords":
        return _MappedRecords(self._records, self.mapper, self._groups, self._seed)

    def _order(self) -> TrainingOrder:
        return TrainingOrder(
            self._build_sampler(self._seed),
            self._groups,
            self._total_batch_size,
            comm.get_rank(),
            comm.get_world_size(),
        )


class _MappedRecords(Dataset):
    """From a place to the mapped record there, or another one if that is bad, and the bad ones."""

    def __init__(self, records: Dataset, mapper: Callable, groups: bytes, seed: int):
        self._records = records
        self._mapper = mapper
        self._replacements = Replacements(groups)
        self._seed = seed

    def __getitem__(self, place: Place) -> Tuple[dict | None, List[Tuple[str, str]]]:
        position, index = place
        bad_images = []
        with random_state_kept(with_gpu=False):
            for number in range(_MAX_DRAWN):
                seed_cpu(self._seed, position, number)
                if number:
                    index = self._replacements.draw(index)
                try:
                    image = self._mapper(self._records[index])
                except BadImageError as e:
                    bad_images.append((e.path, e.reason))
                    continue
                if image is not None:
                    return image, bad_images
        return None, bad_images


def _serialize(records: Sequence[dict]) -> DatasetFromList:
    try:
        return DatasetFromList(records, copy=False)
    except (pickle.PicklingError, AttributeError, TypeError) as e:
        raise UserError(
            f"DATASETS.TRAIN: a dict of the data set has a value that cannot be pickled: {e}"
        ) from None


def annotated_records(cfg: CfgNode, split: str) -> Sequence[dict]:
    """Return the records of ``"TRAIN"`` or ``"TEST"`` that losses are computed on.

    Images that training leaves out are omitted.
    """
    proposal_files = cfg.DATASETS[f"PROPOSAL_FILES_{split}"]
    return detection_records(
        cfg.DATASETS[split],
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        min_keypoints=cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
        if cfg.MODEL.KEYPOINT_ON
        else 0,
        proposal_files=proposal_files if cfg.MODEL.LOAD_PROPOSALS else None,
    )


def evaluated_records(cfg: CfgNode, name: str) -> Sequence[dict]:
    """Return the records that a model is evaluated on: all of one data set."""
    registered(name)
    proposal_files = None
    if cfg.MODEL.LOAD_PROPOSALS:
        if name not in cfg.DATASETS.TEST:
            raise UserError(
                f"DATASETS.PROPOSAL_FILES_TEST has no file for {name}, not in DATASETS.TEST"
            )
        proposal_files = [cfg.DATASETS.PROPOSAL_FILES_TEST[list(cfg.DATASETS.TEST).index(name)]]
    records = detection_records(
        [name],
        filter_empty=False,
        proposal_files=proposal_files,
    )
    return fill_image_ids(records) if isinstance(records, list) else records


def epoch_size(cfg: CfgNode, num_records: int) -> int:
    """The samples of an epoch over so many records; of a random subset, those in it."""
    if cfg.DATALOADER.SAMPLER_TRAIN == "RandomSubsetTrainingSampler":
        return int(num_records * cfg.DATALOADER.RANDOM_SUBSET_RATIO)
    return num_records


def build_train_loader(cfg: CfgNode, mapper: Callable[[dict], dict] | None = None) -> TrainLoader:
    """Build the training loader of a config, from the same keys as Detectron2's.

    A negative ``SEED`` is replaced by a random one, the same in all processes. ``mapper`` replaces
    :class:`rsb_d2.data.images.CheckedDatasetMapper`.
    """
    records = annotated_records(cfg, "TRAIN")
    return TrainLoader(
        records,
        CheckedDatasetMapper(cfg, is_train=True) if mapper is None else mapper,
        lambda seed: build_sampler(cfg, records, seed),
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        pin_memory=is_pinned_for(cfg.MODEL.DEVICE),
        max_bad_images=0
        if cfg.INPUT.get("DAMAGED_IMAGES") == "error"
        else cfg.DATALOADER.MAX_BAD_IMAGES,
        seed=cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed(),
    )


def build_inference_loader(
    records: Sequence[dict], mapper: Callable[[dict], dict], num_workers: int
) -> WorkerLoader:
    """Build Detectron2's test loader of this process's share of the images, in lists of one."""
    if isinstance(records, list):
        records = DatasetFromList(records, copy=False)
    return WorkerLoader(
        MapDataset(records, mapper),
        batch_size=1,
        sampler=InferenceSampler(len(records)),
        num_workers=num_workers,
        collate_fn=_same,
    )


def _same(item: Any) -> Any:
    return item


def build_test_loader(cfg: CfgNode, dataset_name: str) -> Iterable[list]:
    """Build the loader of an evaluation: this process's share of the images, each once."""
    mapper = CheckedDatasetMapper(cfg, is_train=False)
    records = evaluated_records(cfg, dataset_name)
    records = without_damaged(cfg, dataset_name, records)
    return build_inference_loader(records, mapper, cfg.DATALOADER.NUM_WORKERS)
