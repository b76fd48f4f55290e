"""Data sets that timm reads, each image at its place: ``DATASETS.TIMM``.

The order of a training is drawn from the seed, and its image number n is one and the same in any
number of processes and after a kill. So what timm reads in one pass alone is refused, except
WebDataset's shards, which are tar files and are indexed here instead.
"""

import contextlib
import io
import os
from typing import Any, BinaryIO, Dict, Iterator, List, Sequence, Tuple

from detectron2.utils import comm
from PIL import Image
from timm.data import ImageDataset, create_dataset
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from timm.utils.misc import natural_key

from ...data.catalog import registered
from ...errors import UserError, printable
from .dataset import ClassificationDataset
from .shards import Shards

# What timm reads from its beginning to its end only.
_IN_ONE_PASS = ("tfds", "hfids")


class TimmDataset(ClassificationDataset):
    """A data set that timm's ``create_dataset`` knows.

    Args:
        name (str): the name it is registered under.
        timm_name (str): as ``create_dataset`` takes it: ``"hfds/timm/oxford-iiit-pet"``,
            ``"wds/..."``, ``"torch/cifar10"``; ``""`` for a tar file, a folder of tar files or a
            folder of images.
        root (str): a local path, which may begin with ``~``; for Hugging Face the cache, or ``""``.
        split (str): ``"train"``, ``"validation"``, ``"train[:1000]"``, as the source has them; for
            WebDataset the shards, ``"train-{0000..0015}.tar"`` or ``"train-*.tar"``.
    """

    def __init__(self, name: str, timm_name: str, root: str, split: str):
        self._entry = timm_name, os.path.abspath(os.path.expanduser(root)) if root else "", split
        super().__init__(name, " ".join(filter(None, self._entry)) or "nothing")
        self._dataset: Any = None
        self._labels: Sequence[int] = ()

    def open_image(self, index: int) -> BinaryIO:
        """The image file at a place, or the pixels as PNG where there is none.

        Args:
            index (int): of a record.
        """
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
        if kind in _IN_ONE_PASS:
            raise UserError(
                f"{kind} is read in one pass, so that no training could go on exactly where it was "
                "stopped; take hfds/…, WebDataset's wds/…, tar files or folders"
            )
        if kind not in ("hfds", "wds", "torch", ""):
            raise UserError(f"timm has no {kind!r}; write hfds/…, wds/…, torch/…, or ''")
        if kind != "hfds" and not os.path.exists(root):
            raise UserError("there is no such file or folder")
        try:
            with _main_process_first():  # timm may fetch the data, or write an index beside it
                self._dataset = _open(kind, timm_name, root, split)
            self._labels, names = _labels_of(self._dataset)
        except UserError:
            raise
        except ImportError as e:
            package = (e.name or "").partition(".")[0] or "datasets"
            raise UserError(f"it needs the package {package}; pip install {package}") from None
        except Exception as e:  # what a source raises is of many types
            told = printable(" ".join(str(e).split()))[:300]
            raise UserError(f"timm cannot read it ({type(e).__name__}: {told})") from None
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
    """Those of some registered data sets whose images are no files of their own, by name."""
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
        # Each process opens the file itself: one that is handed on by fork has one place for all.
        reader = ReaderImageInTar(root, cache_tarfiles=False)
        # timm leaves images of one name, in several files, as the file system lists those.
        keys = [
            (t, natural_key(s[0].path), s[1] or "") for s, t in zip(reader.samples, reader.targets)
        ]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        reader.samples, reader.targets = reader.samples[order], reader.targets[order]
        return ImageDataset(root, reader=reader)
    return create_dataset(name, root=root or None, split=split or "train")


def _labels_of(dataset: Any) -> Tuple[List[int], List[str]]:
    """The labels of all images, without reading one, and the names of the classes."""
    reader = getattr(dataset, "reader", dataset)
    if hasattr(reader, "iter_targets"):
        labels = reader.iter_targets()
    elif hasattr(reader, "targets"):
        labels = reader.targets
    elif hasattr(reader, "samples"):
        labels = (label for _, label in reader.samples)
    else:
        raise UserError(f"timm's {type(reader).__name__} does not say its labels")
    labels = [int(label) for label in labels]
    indices = getattr(reader, "class_name_to_idx", None) or getattr(reader, "class_to_idx", None)
    names = [str(n) for n in sorted(indices, key=indices.get)] if indices else []
    return labels, names or [str(i) for i in range(max(labels, default=-1) + 1)]


def _as_file(image: Image.Image) -> BinaryIO:
    f = io.BytesIO()
    image.save(f, "PNG", compress_level=0)
    f.seek(0)
    return f
