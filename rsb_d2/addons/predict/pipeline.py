"""Prediction of any number of images: processes that read, the model, and processes that write.

The batches depend only on the list of images and ``--batch``, so that a resumed run and a run in
shards compute the same as an uninterrupted one.
"""

import functools
import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Sequence, Tuple

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from tqdm import tqdm

from ...data.images import BadImageError, image_size, read_image
from ...errors import UserError, printable
from ...memory import is_out_of_memory
from ...predictor import Predictor, Preparation
from .results import ALL, CLASSES, Journal, RunFolder, Shard, Summary, images_setting
from .writing import ImageWriter, Task, Writers, become_worker, line_of_skipped, many_open_files

# Number of batches whose images are sorted by shape together. Chunks are also the unit of which
# shards are made, so larger ones are shared less evenly.
_BATCHES_PER_CHUNK = 8
# A batch is closed when one more image would make its padded size this many times its pixels.
_MAX_PADDING = 1.5


@dataclass(frozen=True)
class Options:
    """Options of :func:`predict_files`.

    Args:
        batch_size (int): of the model.
        workers (int or None): number of processes that read, and of those that write; 0 for none;
            ``None`` to choose it by cores and images.
        pictures (bool): write annotated pictures.
        resume (bool): continue the run in the output folder, if there is one.
        shard (Shard): the part of the images to predict.

    Raises:
        UserError: if a number is out of range.
    """

    batch_size: int = 1
    workers: int | None = None
    pictures: bool = True
    resume: bool = False
    shard: Shard = ALL

    def __post_init__(self):
        if self.batch_size < 1:
            raise UserError(f"--batch is {self.batch_size}; it must be 1 or more")
        if self.workers is not None and self.workers < 0:
            raise UserError(
                f"--workers is {self.workers}; it must be 0, for no other processes, or more"
            )


def predict_files(
    predictor: Predictor,
    images: List[Tuple[str, str]],
    output_dir: str,
    options: Options,
    settings: Dict[str, Any] | None = None,
) -> Summary:
    """Detect objects in images, and write pictures and results.

    Args:
        predictor (Predictor): of the model.
        images (list[tuple[str, str]]): of :func:`rsb_d2.addons.predict.files.find_images`, the
            same in all shards.
        output_dir (str): created if needed; gets ``pictures/NAME.jpg``, ``results.json`` and
            ``images.json``, the latter two after :func:`.results.merge_shards` if there are
            several shards. The id of an image is its position in ``images``, from 1.
        options (Options): batch size, workers, outputs.
        settings (dict or None): of :func:`.results.settings_of`; a run with other settings is not
            continued.

    Returns:
        Summary: of the images of the shard.

    Raises:
        UserError: if the folder is not writable, or its run cannot be continued.
    """
    folder = RunFolder(output_dir, options.shard)
    classes = predictor.classes
    settings = {
        **images_setting(images),
        **(settings or {}),
        CLASSES: dict(zip(map(str, classes.ids), classes.names)),
        "--batch": options.batch_size,
        "pictures": options.pictures,
    }
    mine = images_of_shard(len(images), options)
    pending = folder.begin(settings, mine, resume=options.resume, pictures=options.pictures)
    if isinstance(pending, dict):
        return Summary.from_json(pending)
    _predict_pending(predictor, images, folder, options, pending)
    return folder.finish(settings, mine, classes)


def images_of_shard(num_images: int, options: Options) -> List[int]:
    """Return the indices of a shard's images, ascending; all images of a batch are in one shard."""
    size, (number, count) = chunk_size(options.batch_size), options.shard
    return [i for i in range(num_images) if i // size % count == number - 1]


def _predict_pending(
    predictor: Predictor,
    images: List[Tuple[str, str]],
    folder: RunFolder,
    options: Options,
    pending: List[int],
) -> None:
    """Predict images, and write their lines and pictures."""
    done = np.ones(len(images), dtype=bool)
    done[pending] = False
    workers = options.workers
    if workers is None:
        workers = _default_workers(len(pending))
    paths = [path for path, _ in images]
    chunks = pending_chunks(done, options.batch_size)
    batches = ImageBatches(
        paths, chunks, done, predictor.preparation, options.batch_size, options.pictures
    )
    classes = predictor.classes
    write = ImageWriter(classes.names, classes.ids, predictor.input_format, folder.progress)
    with ExitStack() as stack:
        stack.enter_context(many_open_files())
        journal = stack.enter_context(Journal(folder.progress))
        waiting = 2 * options.batch_size + 4 * workers
        writers = stack.enter_context(Writers(write, workers, waiting))
        quiet = len(images) < 2
        progress = tqdm(total=len(pending), unit="image", disable=quiet, file=sys.stderr)
        stack.enter_context(progress)

        def skip(path: str, index: int, reason: str) -> None:
            journal.add(line_of_skipped(index, path, reason))
            progress.write(f"skipped {printable(path)}: {reason}", file=sys.stderr)

        for batch, found in detect_all(predictor, load(batches, workers)):
            batch_done = {loaded.index for loaded in batch if done[loaded.index]}
            for loaded in batch:
                if loaded.reason and loaded.index not in batch_done:
                    skip(paths[loaded.index], loaded.index, loaded.reason)
            for loaded, instances in found:
                if loaded.index in batch_done:
                    continue
                path, name = images[loaded.index]
                if instances is None:
                    skip(path, loaded.index, "there is too little memory for it")
                    continue
                picture = os.path.join(folder.pictures, f"{name}.jpg") if options.pictures else ""
                pixels = None if loaded.pixels is None else loaded.pixels.numpy()
                writers.submit(Task(loaded.index, path, picture, pixels, instances))
            for line in writers.finished():
                journal.add(line)
            progress.update(len(batch) - len(batch_done))
        for line in writers.finished(all=True):
            journal.add(line)


def _default_workers(num_images: int) -> int:
    if num_images < 16:  # starting a process would take longer
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(4, cores - 1))


def detect_all(
    predictor: Predictor, batches: Iterable[List["Loaded"]]
) -> Iterator[Tuple[List["Loaded"], List[tuple]]]:
    """Detect objects in batches; while a GPU computes one, the results of the one before are used.

    Args:
        predictor (Predictor): of the model.
        batches (iterable of list[Loaded]): as of :func:`detect`.

    Yields:
        list[Loaded], list[tuple]: each batch, and the result of :func:`detect` for it.
    """
    before = []
    for batch in batches:
        started = batch, _start(predictor, batch)
        for of_before, finish in before:
            yield of_before, finish()
        before = [started]
        if predictor.model.device.type == "cpu":  # it has been computed already
            yield batch, started[1]()
            before = []
    for of_before, finish in before:
        yield of_before, finish()


def detect(predictor: Predictor, batch: List["Loaded"]) -> List[tuple]:
    """Detect objects in a batch.

    Args:
        predictor (Predictor): of the model.
        batch (list[Loaded]): images without ``prepared`` are skipped.

    Returns:
        list[tuple[Loaded, Instances or None]]: ``None`` for an image that needs too much memory.
    """
    return _start(predictor, batch)()


def _start(predictor: Predictor, batch: List["Loaded"]) -> Callable[[], List[tuple]]:
    usable = [loaded for loaded in batch if loaded.prepared is not None]
    if not usable:
        return list
    finish = _unless_memory_is_full(predictor.start, [loaded.prepared for loaded in usable])
    if finish is None:
        return partial(_detect_separately, predictor, usable)

    def results() -> List[tuple]:
        instances = _unless_memory_is_full(finish)
        if instances is None:
            return _detect_separately(predictor, usable)
        return list(zip(usable, instances))

    return results


def _unless_memory_is_full(function: Callable, *args: Any) -> Any:
    try:
        return function(*args)
    except (MemoryError, RuntimeError) as e:
        if not is_out_of_memory(e):
            raise
    return None  # outside the except block, because the frames of the error keep the memory


def _detect_separately(predictor: Predictor, usable: List["Loaded"]) -> List[tuple]:
    if len(usable) == 1:
        return [(usable[0], None)]
    _print_once(
        f"there is too little memory for a batch of {len(usable)} images, which are done one by "
        "one; a smaller --batch is faster"
    )
    return [found for loaded in usable for found in detect(predictor, [loaded])]


@functools.cache
def _print_once(text: str) -> None:
    tqdm.write(text, file=sys.stderr)


# ---- reading, in batches of similar shapes ----


class Loaded(NamedTuple):
    """One image, ready for the model, or the reason why it cannot be used.

    Args:
        index (int): in the list of all images.
        prepared (dict or None): of :class:`Preparation`.
        pixels (Tensor or None): uint8 (H, W, 3), as read; None if no pictures are drawn.
        reason (str): why it cannot be used; "" if it can.
    """

    index: int
    prepared: Dict[str, Any] | None
    pixels: torch.Tensor | None
    reason: str = ""


def chunk_size(batch_size: int) -> int:
    """Return the number of consecutive images that are made into batches together."""
    return 1 if batch_size == 1 else batch_size * _BATCHES_PER_CHUNK


def pending_chunks(done: Sequence[int], batch_size: int) -> List[int]:
    """Return the numbers of the chunks that have an image which is not done.

    Args:
        done (sequence of bool): of each image.
        batch_size (int): of the model.
    """
    size = chunk_size(batch_size)
    return [i for i in range(-(-len(done) // size)) if not all(done[i * size : (i + 1) * size])]


class ImageBatches(IterableDataset):
    """The batches of some chunks in order; with several workers, each worker reads own chunks.

    Args:
        paths (list[str]): of all images.
        chunks (list[int]): of :func:`pending_chunks`.
        done (sequence of bool): of each image; a batch is left out if all its images are done.
        preparation (Preparation): of the model.
        batch_size (int): of the model.
        keep_pixels (bool): whether pictures are drawn.
    """

    def __init__(
        self,
        paths: List[str],
        chunks: List[int],
        done: Sequence[int],
        preparation: Preparation,
        batch_size: int,
        keep_pixels: bool,
    ):
        self._paths = paths
        self._chunks = chunks
        self._done = done
        self._preparation = preparation
        self._batch_size = batch_size
        self._keep_pixels = keep_pixels

    def __iter__(self) -> Iterator[List[Loaded]]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        size = chunk_size(self._batch_size)
        for chunk in self._chunks[first::step]:
            indices = range(chunk * size, min((chunk + 1) * size, len(self._paths)))
            for batch in self._group(indices):
                if not all(self._done[index] for index in batch):
                    yield [self._load(index) for index in batch]

    def _group(self, indices: Sequence[int]) -> List[List[int]]:
        if self._batch_size == 1:
            return [[index] for index in indices]
        sizes, unreadable = [], []
        for index in indices:
            try:
                width, height = image_size(self._paths[index])
                sizes.append((index, *self._preparation.size(height, width)))
            except (BadImageError, ArithmeticError):
                unreadable.append([index])  # reading it finds the reason
        return group_by_shape(sizes, self._batch_size) + unreadable

    def _load(self, index: int) -> Loaded:
        try:
            image = read_image(
                self._paths[index],
                self._preparation.input_format,
                partial=self._preparation.partial,
            )
            prepared = self._preparation(image)
        except Exception as e:  # unreadable images, and shapes that cannot be resized
            return Loaded(index, None, None, reason_of(e))
        if not self._keep_pixels:
            return Loaded(index, prepared, None)
        return Loaded(index, prepared, torch.from_numpy(np.require(image, requirements=["C", "W"])))


def group_by_shape(sizes: List[Tuple[int, int, int]], batch_size: int) -> List[List[int]]:
    """Group images into batches that need little padding.

    Args:
        sizes (list[tuple[int, int, int]]): index, height and width of each image.
        batch_size (int): maximum number of images in a batch.

    Returns:
        list[list[int]]: indices.
    """
    batches, shapes = [], []
    for index, height, width in sorted(sizes, key=lambda s: (s[1] / max(s[2], 1), s[0])):
        shapes.append((height, width))
        padded = max(h for h, _ in shapes) * max(w for _, w in shapes) * len(shapes)
        fits = padded <= _MAX_PADDING * sum(h * w for h, w in shapes)
        if not batches or len(shapes) > batch_size or not fits:
            batches.append([])
            shapes = [(height, width)]
        batches[-1].append(index)
    return batches


def reason_of(error: Exception) -> str:
    """Return why an image cannot be used, in one line."""
    if isinstance(error, BadImageError):
        return error.reason
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0][:200]


def load(batches: ImageBatches, workers: int) -> Iterator[List[Loaded]]:
    """Read batches ahead in processes, and yield them in the order in which they become ready.

    Args:
        batches (ImageBatches): to read.
        workers (int): number of processes; 0 to read in this one.

    Raises:
        UserError: if a worker is killed.
    """
    ahead = {"prefetch_factor": 2, "in_order": False} if workers else {}
    loader = DataLoader(
        batches,
        batch_size=None,
        num_workers=workers,
        collate_fn=_identity,
        worker_init_fn=become_worker,
        **ahead,
    )
    iterator = iter(loader)
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except RuntimeError as e:
            if "DataLoader worker" not in str(e):
                raise
            raise UserError(
                "a process that reads images was killed, possibly for lack of memory; continue "
                "with --resume and fewer --workers"
            ) from e
        yield batch


def _identity(batch: List[Loaded]) -> List[Loaded]:
    return batch
