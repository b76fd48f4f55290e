"""Output of one image, a JSON line and an annotated picture, written by other processes."""

import concurrent.futures
import errno
import io
import json
import os
import resource
import signal
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence

import cv2
import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from ...data.workers import end_with_parent
from ...errors import UserError, printable
from ...memory import is_out_of_memory
from ...predictor import to_coco
from ...visualization import drawable
from .drawing import draw_detections

# Errors about the name of one picture, not about the output folder.
_NAME_ERRORS = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)


class Task(NamedTuple):
    """One image with its detections.

    Args:
        index (int): in the list of all images.
        path (str): of the image.
        picture (str): path of the annotated picture; "" for none.
        pixels (ndarray or None): uint8 (H, W, 3), as read; None if no picture is drawn.
        instances (Instances or dict): detections; in the form of :func:`pack` between processes.
    """

    index: int
    path: str
    picture: str
    pixels: np.ndarray | None
    instances: Instances | Dict[str, Any]


def line_of_skipped(index: int, path: str, reason: str) -> bytes:
    """Return the line of an image that cannot be used."""
    return _line({"index": index, "path": path, "skipped": reason})


def _line(record: Dict[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"


class ImageWriter:
    """Writes the picture of one image, and returns its line.

    Args:
        names (sequence of str): of the classes.
        ids (sequence of int): of the classes, as in the annotation file.
        input_format (str): of pixels, ``"RGB"`` or ``"BGR"``.
        temporary (str): folder for pictures that are not complete.
    """

    def __init__(self, names: Sequence[str], ids: Sequence[int], input_format: str, temporary: str):
        self._names = list(map(drawable, names))  # warns once here, not in each worker
        self._ids = ids
        self._is_rgb = input_format == "RGB"
        self._temporary = temporary

    def __call__(self, task: Task) -> bytes:
        """Write the picture, and return the line, which ends with a newline.

        If the picture cannot be drawn, the line has the detections and the reason.

        Raises:
            UserError: if the output folder is not writable.
        """
        instances = task.instances
        if not isinstance(instances, Instances):
            instances = unpack(instances)
        height, width = instances.image_size
        record = {"id": task.index + 1, "file_name": task.path, "height": height, "width": width}
        results = to_coco(instances, task.index + 1, self._ids)
        line = {"index": task.index, "image": record, "results": results}
        reason = self._draw(task, instances) if task.picture else ""
        return _line({**line, "no_picture": reason} if reason else line)

    def _draw(self, task: Task, instances: Instances) -> str:
        """Write the picture. Return the reason if it cannot be drawn, or ""."""
        encoded = io.BytesIO()
        try:
            rgb = task.pixels if self._is_rgb else task.pixels[:, :, ::-1]
            drawn = draw_detections(np.ascontiguousarray(rgb), instances, self._names)
            Image.fromarray(drawn).save(encoded, "JPEG", quality=92)
        except Exception as e:  # the libraries raise many types for unusual images
            lines = str(e).strip().splitlines() or [type(e).__name__]
            return "too little memory" if is_out_of_memory(e) else printable(lines[0][:200])
        name = f"picture-{os.uname().nodename}-{os.getpid()}.jpg"
        path = os.path.join(self._temporary, name)
        try:
            os.makedirs(os.path.dirname(task.picture), exist_ok=True)
            with open(path, "wb") as f:
                f.write(encoded.getbuffer())
            os.replace(path, task.picture)
        except OSError as e:
            if e.errno in _NAME_ERRORS:
                return e.strerror
            raise UserError(f"cannot write {task.picture}: {e.strerror or e}") from e
        return ""


def pack(instances: Instances) -> Dict[str, Any]:
    """Convert detections for another process: small and fast to pickle, with masks as bits."""
    packed: Dict[str, Any] = {"image_size": instances.image_size}
    for name, value in instances.get_fields().items():
        if isinstance(value, Boxes):
            packed[name] = "boxes", value.tensor.numpy(), None
        elif value.dtype == torch.bool:
            packed[name] = "bits", np.packbits(value.numpy(), axis=-1), value.shape
        else:
            packed[name] = "tensor", value.numpy(), None
    return packed


def unpack(packed: Dict[str, Any]) -> Instances:
    """Return the detections that :func:`pack` has converted."""
    fields = dict(packed)
    instances = Instances(fields.pop("image_size"))
    for name, (kind, array, shape) in fields.items():
        if kind == "bits":
            bits = np.unpackbits(array, axis=-1, count=shape[-1]).reshape(shape)
            instances.set(name, torch.from_numpy(bits.view(bool)))
        else:
            tensor = torch.from_numpy(array)
            instances.set(name, Boxes(tensor) if kind == "boxes" else tensor)
    return instances


# ---- worker processes ----


def become_worker(worker_id: int = 0) -> None:
    """Prepare a process that reads or writes: ignore Ctrl-C, and end when its parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Threads of a pool do not survive a fork.
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    end_with_parent()


@contextmanager
def many_open_files() -> Iterator[None]:
    """Raise the limit of open files in the block: an image on its way to a process takes one."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    _, most = before
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        yield
    finally:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, before)


_write: ImageWriter | None = None  # of a worker


def _start(write: ImageWriter) -> None:
    global _write
    become_worker()
    _write = write


def _work(task: Task) -> bytes:
    return _write(task)


class Writers:
    """Processes that write, with a limited number of waiting images.

    Args:
        write (ImageWriter): called in the processes.
        workers (int): number of processes; 0 to write in this one.
        max_waiting (int): maximum number of images that are submitted and not written.
    """

    def __init__(self, write: ImageWriter, workers: int, max_waiting: int):
        self._write = write
        self._max_waiting = max_waiting
        self._waiting = set()
        self._lines: List[bytes] = []
        self._pool = None
        if workers:
            self._pool = concurrent.futures.ProcessPoolExecutor(
                workers, initializer=_start, initargs=(write,)
            )

    def __enter__(self) -> "Writers":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, task: Task) -> None:
        """Submit one image; block while too many are waiting."""
        if self._pool is None:
            self._lines.append(self._write(task))
            return
        if len(self._waiting) >= self._max_waiting:
            self._collect(concurrent.futures.FIRST_COMPLETED)
        packed = task._replace(instances=pack(task.instances))
        try:
            self._waiting.add(self._pool.submit(_work, packed))
        except BrokenProcessPool as e:
            raise _killed() from e

    def finished(self, *, all: bool = False) -> Iterator[bytes]:
        """Yield the lines of the images that are done since the last call.

        Args:
            all (bool): wait for all submitted images.

        Raises:
            UserError: if a picture cannot be written, or a process was killed.
        """
        if all and self._waiting:
            self._collect(concurrent.futures.ALL_COMPLETED)
        elif self._waiting:
            self._take({future for future in self._waiting if future.done()})
        lines, self._lines = self._lines, []
        yield from lines

    def _collect(self, until: str) -> None:
        self._take(concurrent.futures.wait(self._waiting, return_when=until).done)

    def _take(self, done: set) -> None:
        self._waiting -= done
        try:
            self._lines += [future.result() for future in done]
        except BrokenProcessPool as e:
            raise _killed() from e


def _killed() -> UserError:
    return UserError(
        "a process that writes pictures was killed, possibly for lack of memory; continue with "
        "--resume and fewer --workers"
    )
