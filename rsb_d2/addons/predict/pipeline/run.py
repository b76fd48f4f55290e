"""A run of many images: what is done, what is left, and the model between reading and writing."""

import functools
import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Dict, List, Tuple

from tqdm import tqdm

from ....errors import UserError, printable
from ....memory import is_out_of_memory
from ....predictor import Predictor
from .batches import (
    ImageBatches,
    Loaded,
    chunk_size,
    load,
    pending_chunks,
)
from .folder import RunFolder
from .journal import Journal
from .processes import ALONE, Processes
from .settings import images_setting
from .summary import Summary
from .workers import default_workers, many_open_files
from .writing import (
    ImageWriter,
    Task,
    Writers,
    line_of_skipped,
)


@dataclass(frozen=True)
class Options:
    """How images are predicted.

    Args:
        batch_size (int): images at a time.
        workers (int or None): processes that read and, as many, that write, of each process with a
            model; 0 for this process alone; ``None`` for what fits the cores and the images.
        pictures (bool): whether annotated pictures are written.
        resume (bool): go on with the run in the output folder, if there is one.

    Raises:
        UserError: if a number is out of its range.
    """

    batch_size: int = 1
    workers: int | None = None
    pictures: bool = True
    resume: bool = False

    def __post_init__(self):
        if self.batch_size < 1:
            raise UserError(f"--batch is {self.batch_size}; it must be 1 or more")
        if self.workers is not None and self.workers < 0:
            raise UserError(
                f"--workers is {self.workers}; it must be 0, for no processes beside this one, or "
                "more"
            )


def predict_files(
    predictor: Predictor,
    images: List[Tuple[str, str]],
    output_dir: str,
    options: Options,
    settings: Dict[str, Any] | None = None,
    processes: Processes = ALONE,
) -> Summary:
    """Detect objects in images, and write pictures and results.

    Args:
        predictor (Predictor): of the model.
        images (list[tuple[str, str]]): of :func:`rsb_d2.addons.predict.files.find_images`, the
            same in all processes.
        output_dir (str): gets ``pictures/NAME.jpg``, ``results.json`` and ``images.json``; made
            if it is not there. The id of an image is its place in ``images``, from 1.
        options (Options): how.
        settings (dict or None): of :func:`settings_of`: a run of others is not gone on with.
        processes (Processes): of the run; each has a part of the images.

    Returns:
        Summary: of the images of all processes.

    Raises:
        UserError: for a folder that cannot be written to, and a run that cannot be gone on with.
    """
    folder = RunFolder(output_dir)
    classes = predictor.classes
    settings = {
        **images_setting(images),
        **(settings or {}),
        "the classes": dict(zip(map(str, classes.ids), classes.names)),
        "--batch": options.batch_size,
        "pictures": options.pictures,
    }
    resume, pictures = options.resume, options.pictures
    begin = processes.first_does(
        lambda: folder.begin(settings, len(images), resume=resume, pictures=pictures)
    )
    if isinstance(begin, dict):
        return Summary.of_json(begin)
    _predict(predictor, images, folder, options, begin, processes)
    processes.any()  # waits for the others
    finished = processes.first_does(lambda: folder.finish(settings, len(images), classes))
    return Summary.of_json(finished)


def _predict(
    predictor: Predictor,
    images: List[Tuple[str, str]],
    folder: RunFolder,
    options: Options,
    done: bytes,
    processes: Processes,
) -> None:
    """The part of one process."""
    chunks = pending_chunks(done, options.batch_size)[processes.rank :: processes.size]
    total = _count_pending(chunks, done, options.batch_size)
    workers = options.workers
    if workers is None:
        workers = default_workers(total, processes.local_size)
    paths = [path for path, _ in images]
    batches = ImageBatches(
        paths, chunks, done, predictor.preparation, options.batch_size, options.pictures
    )
    classes = predictor.classes
    write = ImageWriter(classes.names, classes.ids, predictor.input_format, folder.progress)
    with ExitStack() as stack:
        stack.enter_context(many_open_files())
        journal = stack.enter_context(Journal(folder.progress, processes.rank))
        waiting = 2 * options.batch_size + 4 * workers
        writers = stack.enter_context(Writers(write, workers, waiting))
        quiet = len(images) < 2 or processes.rank > 0
        progress = tqdm(total=total, unit="image", disable=quiet, file=sys.stderr)
        stack.enter_context(progress)

        def skip(path: str, index: int, reason: str) -> None:
            journal.add(line_of_skipped(index, path, reason))
            progress.write(f"skipped {printable(path)}: {reason}", file=sys.stderr)

        for batch in load(batches, workers):
            batch_done = {loaded.index for loaded in batch if done[loaded.index]}
            for loaded in batch:
                if loaded.reason and loaded.index not in batch_done:
                    skip(paths[loaded.index], loaded.index, loaded.reason)
            for loaded, instances in _detect(predictor, batch):
                if loaded.index not in batch_done:
                    path, name = images[loaded.index]
                    if instances is None:
                        skip(path, loaded.index, "there is too little memory for it")
                        continue
                    picture = os.path.join(folder.pictures, f"{name}.jpg")
                    picture = picture if options.pictures else ""
                    pixels = None if loaded.pixels is None else loaded.pixels.numpy()
                    writers.submit(Task(loaded.index, path, picture, pixels, instances))
            for line in writers.finished():
                journal.add(line)
            progress.update(len(batch) - len(batch_done))
        for line in writers.finished(all=True):
            journal.add(line)


def _count_pending(chunks: List[int], done: bytes, batch_size: int) -> int:
    size = chunk_size(batch_size)
    return sum(done[i * size : (i + 1) * size].count(0) for i in chunks)


def _detect(predictor: Predictor, batch: List[Loaded]) -> List[tuple]:
    """What is found in each image; ``None`` for one that there is too little memory for."""
    usable = [loaded for loaded in batch if loaded.prepared is not None]
    if not usable:
        return []
    try:
        return list(zip(usable, predictor([loaded.prepared for loaded in usable])))
    except (MemoryError, RuntimeError) as e:
        if not is_out_of_memory(e):
            raise
    # Not while the error is handled, whose frames hold what has filled the memory.
    if len(usable) == 1:
        return [(usable[0], None)]
    _say_once(
        f"there is too little memory for a batch of {len(usable)} images, which are done one by "
        "one; a smaller --batch is faster"
    )
    return [found for loaded in usable for found in _detect(predictor, [loaded])]


@functools.cache
def _say_once(text: str) -> None:
    tqdm.write(text, file=sys.stderr)
