"""What becomes of the detections of an image: a line of results and a picture, in processes."""

import concurrent.futures
import errno
import io
import json
import os
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from ....errors import UserError, printable
from ....memory import is_out_of_memory
from ....predictor import to_coco
from ....visualization import drawable
from ..drawing import draw_detections
from .workers import become_worker

# What a file system says of a name that it does not take, of one picture and not of the folder.
_OF_THE_NAME = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)


class Task(NamedTuple):
    """One image after the model.

    Args:
        index (int): in the list of all images.
        path (str): of the image.
        picture (str): path of the annotated one; "" for none.
        pixels (ndarray or None): uint8 (H, W, 3), as read; None where no picture is drawn.
        instances (Instances or dict): what was found; in the form of :func:`pack` on the way to
            another process.
    """

    index: int
    path: str
    picture: str
    pixels: np.ndarray | None
    instances: Instances | Dict[str, Any]


def line_of_skipped(index: int, path: str, reason: str) -> bytes:
    """The line of an image that cannot be used."""
    return _line({"index": index, "path": path, "skipped": reason})


def _line(record: Dict[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"


class ImageWriter:
    """Makes the line and the picture of one image.

    Args:
        names (sequence of str): of the classes.
        ids (sequence of int): of the classes, as in the annotation file.
        input_format (str): of pixels, ``"RGB"`` or ``"BGR"``.
        aside (str): a folder where a picture is written before it takes its place.
    """

    def __init__(self, names: Sequence[str], ids: Sequence[int], input_format: str, aside: str):
        self._names = list(map(drawable, names))  # warns once here, not in each worker
        self._ids = ids
        self._is_rgb = input_format == "RGB"
        self._aside = aside

    def __call__(self, task: Task) -> bytes:
        """Write the picture, and return the line, which ends with a newline.

        A picture that cannot be drawn is named in the line; the detections are there.

        Raises:
            UserError: if the output folder takes no picture.
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
        """Write the picture; returns why there is none, or ""."""
        encoded = io.BytesIO()
        try:
            rgb = task.pixels if self._is_rgb else task.pixels[:, :, ::-1]
            drawn = draw_detections(np.ascontiguousarray(rgb), instances, self._names)
            Image.fromarray(drawn).save(encoded, "JPEG", quality=92)
        except Exception as e:  # what an unusual image makes the libraries raise is of many types
            lines = str(e).strip().splitlines() or [type(e).__name__]
            return "too little memory" if is_out_of_memory(e) else printable(lines[0][:200])
        aside = os.path.join(self._aside, f"picture-{os.uname().nodename}-{os.getpid()}.jpg")
        try:
            os.makedirs(os.path.dirname(task.picture), exist_ok=True)
            with open(aside, "wb") as f:
                f.write(encoded.getbuffer())
            os.replace(aside, task.picture)
        except OSError as e:
            if e.errno in _OF_THE_NAME:
                return e.strerror
            raise UserError(f"cannot write {task.picture}: {e.strerror or e}") from e
        return ""


def pack(instances: Instances) -> Dict[str, Any]:
    """Detections in a form that is small and quick to hand to another process: masks as bits."""
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
    """The detections of :func:`pack`."""
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


_write: ImageWriter | None = None  # of a worker


def _start(write: ImageWriter) -> None:
    global _write
    become_worker()
    _write = write


def _work(task: Task) -> bytes:
    return _write(task)


class Writers:
    """Processes that write, with no more images waiting for them than some.

    Args:
        write (ImageWriter): what they do.
        workers (int): how many; with 0 this process does it.
        most_waiting (int): images handed over and not done, at most.
    """

    def __init__(self, write: ImageWriter, workers: int, most_waiting: int):
        self._write = write
        self._most_waiting = most_waiting
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
        """Hand over one image; waits where too many are on their way."""
        if self._pool is None:
            self._lines.append(self._write(task))
            return
        if len(self._waiting) >= self._most_waiting:
            self._collect(concurrent.futures.FIRST_COMPLETED)
        packed = task._replace(instances=pack(task.instances))
        try:
            self._waiting.add(self._pool.submit(_work, packed))
        except BrokenProcessPool as e:
            raise _killed() from e

    def finished(self, *, all: bool = False) -> Iterator[bytes]:
        """The lines of the images that are done since it was last asked.

        Args:
            all (bool): wait for those that are on their way.

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
        "a process that writes pictures was killed, as for want of memory; go on with --resume "
        "and fewer --workers"
    )
