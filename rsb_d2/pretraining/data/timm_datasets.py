"""Data sets that timm reads, in any order: ``DATASETS.TIMM``.

The order of a training depends on the seed only, and its n-th image is the same for any number of
processes and after an interruption. Therefore data that timm reads only sequentially is refused.
The exception are WebDataset's shards, which are tar files and are indexed here instead.
"""

import contextlib
import fnmatch
import io
import os
import re
import tarfile
from typing import Any, BinaryIO, Dict, Iterator, List, NamedTuple, Sequence, Tuple

from detectron2.utils import comm
from PIL import Image
from timm.data import ImageDataset, create_dataset
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from timm.utils.misc import natural_key

from ...data.datasets import registered
from ...errors import UserError, printable
from .datasets import ClassificationDataset

# Sources that timm reads only from beginning to end.
_SEQUENTIAL = ("tfds", "hfids")

# As in timm's ReaderWds: extensions of an image, and that of its class, a number.
_IMAGES = ("jpg", "png", "jpeg", "webp")
_LABEL = "cls"


class TimmDataset(ClassificationDataset):
    """A data set of timm's ``create_dataset``.

    Args:
        name (str): under which it is registered.
        timm_name (str): for ``create_dataset``: ``"hfds/timm/oxford-iiit-pet"``, ``"wds/..."``,
            ``"torch/cifar10"``; ``""`` for a tar file, a folder of tar files or a folder of images.
        root (str): a local path, which may begin with ``~``; for Hugging Face the cache, or ``""``.
        split (str): a split of the source, such as ``"train"`` or ``"train[:1000]"``; for
            WebDataset the shards, ``"train-{0000..0015}.tar"`` or ``"train-*.tar"``.
    """

    def __init__(self, name: str, timm_name: str, root: str, split: str):
        self._entry = timm_name, os.path.abspath(os.path.expanduser(root)) if root else "", split
        super().__init__(name, " ".join(filter(None, self._entry)) or "nothing")
        self._dataset: Any = None
        self._labels: Sequence[int] = ()

    def open_image(self, index: int) -> BinaryIO:
        """Open the image file at an index, or its pixels as PNG if the source has no files."""
        reader = getattr(self._dataset, "reader", None)
        if reader is not None:
            return reader[index][0]
        image, _ = self._dataset[index]
        return _as_file(image)

    def is_same(self, other: Any) -> bool:
        return type(self) is type(other) and self._entry == other._entry

    def _check(self) -> List[str]:
        timm_name, root, split = self._entry
        kind = timm_name.partition("/")[0].lower() if "/" in timm_name else ""
        if kind in _SEQUENTIAL:
            raise UserError(
                f"{kind} can be read only sequentially, so that a training could not be resumed "
                "exactly; use hfds/…, WebDataset's wds/…, tar files or folders"
            )
        if kind not in ("hfds", "wds", "torch", ""):
            raise UserError(f"timm has no {kind!r}; write hfds/…, wds/…, torch/…, or ''")
        if kind != "hfds" and not os.path.exists(root):
            raise UserError("there is no such file or folder")
        try:
            with _main_process_first():  # timm may download the data, or write an index
                self._dataset = _open(kind, timm_name, root, split)
            self._labels, names = _labels_of(self._dataset)
        except UserError:
            raise
        except ImportError as e:
            package = (e.name or "").partition(".")[0] or "datasets"
            raise UserError(f"it needs the package {package}; pip install {package}") from None
        except Exception as e:  # sources raise many types
            text = printable(" ".join(str(e).split()))[:300]
            raise UserError(f"timm cannot read it ({type(e).__name__}: {text})") from None
        if len(names) < 2:
            raise UserError(f"has {len(names)} classes; there must be two or more")
        counts = [0] * len(names)
        for label in self._labels:
            if not 0 <= label < len(names):
                raise UserError(f"has the label {label}, but {len(names)} classes")
            counts[label] += 1
        empty = [name for name, count in zip(names, counts) if not count]
        if empty:
            raise UserError(
                f"{len(empty)} of {len(names)} classes have no image, as {printable(empty[0])}"
            )
        return names

    def _records(self) -> List[Dict[str, Any]]:
        return [
            {
                "file_name": f"{self.name}[{i}]",
                "image_id": i,
                "label": label,
                "dataset": self.name,
                "index": i,
            }
            for i, label in enumerate(self._labels)
        ]


def sources(names: Sequence[str]) -> Dict[str, TimmDataset]:
    """Return, by name, the registered data sets whose images are opened by the data set."""
    found = {name: registered(name) for name in names}
    return {name: dataset for name, dataset in found.items() if isinstance(dataset, TimmDataset)}


@contextlib.contextmanager
def _main_process_first() -> Iterator[None]:
    if not comm.is_main_process():
        comm.synchronize()
    try:
        yield
    finally:
        if comm.is_main_process():
            comm.synchronize()


def _open(kind: str, name: str, root: str, split: str) -> Any:
    if kind == "wds":
        return Shards(root, split)
    is_tar = os.path.isfile(root)
    has_tars = os.path.isdir(root) and any(f.endswith(".tar") for f in os.listdir(root))
    if kind == "" and (is_tar or has_tars):
        # Each process opens the file itself, because forked processes would share a position.
        reader = ReaderImageInTar(root, cache_tarfiles=False)
        # timm leaves images of the same name, in several files, in the order of the file system.
        keys = [
            (t, natural_key(s[0].path), s[1] or "") for s, t in zip(reader.samples, reader.targets)
        ]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        reader.samples, reader.targets = reader.samples[order], reader.targets[order]
        return ImageDataset(root, reader=reader)
    return create_dataset(name, root=root or None, split=split or "train")


def _labels_of(dataset: Any) -> Tuple[List[int], List[str]]:
    """Return the labels of all images, without reading the images, and the class names."""
    reader = getattr(dataset, "reader", dataset)
    if hasattr(reader, "iter_targets"):
        labels = reader.iter_targets()
    elif hasattr(reader, "targets"):
        labels = reader.targets
    elif hasattr(reader, "samples"):
        labels = (label for _, label in reader.samples)
    else:
        raise UserError(f"timm's {type(reader).__name__} does not list its labels")
    labels = [int(label) for label in labels]
    indices = getattr(reader, "class_name_to_idx", None) or getattr(reader, "class_to_idx", None)
    names = [str(n) for n in sorted(indices, key=indices.get)] if indices else []
    return labels, names or [str(i) for i in range(max(labels, default=-1) + 1)]


def _as_file(image: Image.Image) -> BinaryIO:
    f = io.BytesIO()
    image.save(f, "PNG", compress_level=0)
    f.seek(0)
    return f


# ---- WebDataset ----


class _Sample(NamedTuple):
    path: str
    offset: int
    size: int


class Shards:
    """Images in WebDataset's tar files, with ``KEY.jpg`` and ``KEY.cls``, by index.

    The headers of all files are read once; nothing is unpacked, and no file is kept open.

    Args:
        folder (str): a local path.
        pattern (str): names of the files, such as ``train-*.tar`` or ``train-{0000..0015}.tar``;
            ``""`` for ``*.tar``.

    Attributes:
        targets (list[int]): the label of each image.

    Raises:
        UserError: if there is no such file, or an image has no label.
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
        """The object that has the images and targets, as in timm's data sets."""
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
