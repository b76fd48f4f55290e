"""Images read and resized by worker processes, in batches of like shapes.

Which images are a batch follows from the list of images and ``--batch`` alone: a run that is
killed and goes on, or one of many processes, has the batches of one that does neither.
"""

from typing import Any, Dict, Iterator, List, NamedTuple, Sequence, Tuple

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ....data.images import BadImageError, image_size, read_image
from ....errors import UserError
from ....predictor import Preparation
from .workers import become_worker

# Images that are sorted by shape together, in batches; larger ones shared out less evenly.
_BATCHES_OF_CHUNK = 8
# A batch is closed when the padding of one more image would make it this many times larger than
# its images are.
_MOST_PADDING = 1.5


class Loaded(NamedTuple):
    """One image, ready for the model, or the reason why it is not.

    Args:
        index (int): in the list of all images.
        prepared (dict or None): of :class:`Preparation`.
        pixels (Tensor or None): uint8 (H, W, 3), as read; None where no picture is drawn of it.
        reason (str): why it cannot be used; "" if it can.
    """

    index: int
    prepared: Dict[str, Any] | None
    pixels: torch.Tensor | None
    reason: str = ""


def chunk_size(batch_size: int) -> int:
    """How many images one after the other belong together."""
    return 1 if batch_size == 1 else batch_size * _BATCHES_OF_CHUNK


def pending_chunks(done: Sequence[int], batch_size: int) -> List[int]:
    """The numbers of the chunks that have an image which is not done.

    Args:
        done (sequence of bool): of each image.
        batch_size (int): images at a time.
    """
    size = chunk_size(batch_size)
    return [i for i in range(-(-len(done) // size)) if not all(done[i * size : (i + 1) * size])]


class ImageBatches(IterableDataset):
    """The batches of some chunks, one after the other; of several workers each has its own chunks.

    Args:
        paths (list[str]): of all images.
        chunks (list[int]): of :func:`pending_chunks`.
        done (sequence of bool): of each image; a batch that is done as a whole is left out.
        preparation (Preparation): of the model.
        batch_size (int): images at a time.
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
        sizes, alone = [], []
        for index in indices:
            try:
                width, height = image_size(self._paths[index])
                sizes.append((index, *self._preparation.size(height, width)))
            except (BadImageError, ArithmeticError):
                alone.append([index])  # reading it says what is wrong
        return group_by_shape(sizes, self._batch_size) + alone

    def _load(self, index: int) -> Loaded:
        try:
            image = read_image(self._paths[index], self._preparation.input_format)
            prepared = self._preparation(image)
        except Exception as e:  # a shape that cannot be resized, beside what cannot be read
            return Loaded(index, None, None, _reason(e))
        if not self._keep_pixels:
            return Loaded(index, prepared, None)
        return Loaded(index, prepared, torch.from_numpy(np.require(image, requirements=["C", "W"])))


def group_by_shape(sizes: List[Tuple[int, int, int]], batch_size: int) -> List[List[int]]:
    """Make batches that need little padding.

    Args:
        sizes (list[tuple[int, int, int]]): of each image its index, height and width.
        batch_size (int): images of a batch, at most.

    Returns:
        list[list[int]]: indices.
    """
    batches, shapes = [], []
    for index, height, width in sorted(sizes, key=lambda s: (s[1] / max(s[2], 1), s[0])):
        shapes.append((height, width))
        padded = max(h for h, _ in shapes) * max(w for _, w in shapes) * len(shapes)
        fits = padded <= _MOST_PADDING * sum(h * w for h, w in shapes)
        if not batches or len(shapes) > batch_size or not fits:
            batches.append([])
            shapes = [(height, width)]
        batches[-1].append(index)
    return batches


def _reason(error: Exception) -> str:
    if isinstance(error, BadImageError):
        return error.reason
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0][:200]


def load(batches: ImageBatches, workers: int) -> Iterator[List[Loaded]]:
    """Read batches ahead, in processes, in the order in which they become ready.

    Args:
        batches (ImageBatches): to read.
        workers (int): processes; 0 to read in this one.

    Raises:
        UserError: if a worker is killed.
    """
    ahead = {"prefetch_factor": 2, "in_order": False} if workers else {}
    loader = DataLoader(
        batches,
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
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
                "a process that reads images was killed, as for want of memory; go on with "
                "--resume and fewer --workers"
            ) from e
        yield batch


def _as_it_is(batch: List[Loaded]) -> List[Loaded]:
    return batch
