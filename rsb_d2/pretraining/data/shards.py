"""An index of WebDataset's shards, so that each of their images has a place."""

import fnmatch
import io
import os
import re
import tarfile
from typing import BinaryIO, Dict, List, NamedTuple, Tuple

from ...errors import UserError, printable

# As timm's ReaderWds: the image is under one of these, its class, a number, under the other.
_IMAGES = ("jpg", "png", "jpeg", "webp")
_LABEL = "cls"


class _Sample(NamedTuple):
    path: str
    offset: int
    size: int


class Shards:
    """The images of tar files in WebDataset's form: ``KEY.jpg`` beside ``KEY.cls``.

    The headers of all files are read once; nothing is unpacked, and no file is kept open.

    Args:
        folder (str): a local path.
        pattern (str): names in it, with ``*`` or as ``train-{0000..0015}.tar``; ``""`` for all
            that end in ``.tar``.

    Attributes:
        targets (list[int]): the label of each image.

    Raises:
        UserError: if there is no such file, or if an image has no label.
    """

    def __init__(self, folder: str, pattern: str):
        self._samples: List[_Sample] = []
        self.targets: List[int] = []
        for name in _shard_names(folder, pattern or "*.tar"):
            self._index(os.path.join(folder, name))
        if not self._samples:
            raise UserError(f"has no image ending in {', '.join(_IMAGES)}")

    @property
    def reader(self) -> "Shards":
        """What timm's data sets read with; here the same."""
        return self

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Tuple[BinaryIO, int]:
        path, offset, size = self._samples[index]
        with open(path, "rb") as f:
            f.seek(offset)
            return io.BytesIO(f.read(size)), self.targets[index]

    def _index(self, path: str) -> None:
        images: Dict[str, _Sample] = {}
        labels: Dict[str, int] = {}
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    folder, name = os.path.split(member.name)
                    key, _, extension = name.partition(".")
                    key = os.path.join(folder, key)
                    if not member.isfile() or not extension:
                        continue
                    if extension.lower() in _IMAGES:
                        images[key] = _Sample(path, member.offset_data, member.size)
                    elif extension.lower() == _LABEL:
                        labels[key] = int(tar.extractfile(member).read())
        except (tarfile.TarError, ValueError) as e:
            raise UserError(f"{printable(os.path.basename(path))}: {printable(str(e))}") from None
        for key, sample in images.items():
            if key not in labels:
                raise UserError(
                    f"{printable(os.path.basename(path))}: {printable(key)} has no .{_LABEL}, the "
                    "number of its class"
                )
            self._samples.append(sample)
            self.targets.append(labels[key])


def _shard_names(folder: str, pattern: str) -> List[str]:
    if not os.path.isdir(folder):
        raise UserError("there is no such folder")
    span = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not span:
        names = sorted(fnmatch.filter(os.listdir(folder), pattern))
        if not names:
            raise UserError(f"has no file {printable(pattern)}")
        return names
    width = len(span[1])
    numbers = [f"{n:0{width}d}" for n in range(int(span[1]), int(span[2]) + 1)]
    names = [pattern[: span.start()] + number + pattern[span.end() :] for number in numbers]
    missing = [name for name in names if not os.path.isfile(os.path.join(folder, name))]
    if missing or not names:
        raise UserError(
            f"{len(missing)} shards are missing, as {printable((missing or [pattern])[0])}"
        )
    return names
