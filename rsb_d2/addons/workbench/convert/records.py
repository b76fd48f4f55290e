"""What every format is read into and written from: images with their objects, in pixels."""

import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Dict, Iterable, List, Tuple

from tqdm import tqdm

from ....data.images import is_image_name
from ....errors import UserError, first, printable
from ....files import files_below

_SLOW = 2000  # files from which on there is a progress bar

Polygon = List[float]  # x, y, x, y, ... in pixels


@dataclass
class Object:
    """One object of an image.

    Args:
        category (str): name of its class.
        box (tuple[float, float, float, float]): x, y, width, height in pixels; x and y begin with
            0 at the image's left and upper edge.
        polygons (list[Polygon]): of its mask; empty where it has a box alone.
        rle (dict or None): its mask, where it is COCO's run lengths.
        crowd (bool): neither trained on nor counted in an evaluation.
        where (str): the place in the file that it is from, for messages.
        record (dict): the annotation of a COCO file, as it is there.
        position (int): of that annotation among all of the files.
        is_cut (bool): whether the object was cut at the edge of its image, so that ``record`` has
            another box and another mask.
    """

    category: str
    box: Tuple[float, float, float, float]
    polygons: List[Polygon] = field(default_factory=list)
    rle: Dict[str, Any] | None = None
    crowd: bool = False
    where: str = ""
    record: Dict[str, Any] = field(default_factory=dict)
    position: int = 0
    is_cut: bool = False


@dataclass
class Picture:
    """One image.

    Args:
        path (str): of its file, absolute.
        size (tuple[int, int]): width and height in pixels, upright by the EXIF orientation.
        objects (list[Object]): in it.
        source (str): the file of its labels; ``""`` where it has none.
        embedded (bytes): the image itself, where it is in the file of its labels alone; it is
            written to ``path`` then.
        record (dict): the image of a COCO file, with its name in :attr:`DataSet.root`.
    """

    path: str
    size: Tuple[int, int]
    objects: List[Object] = field(default_factory=list)
    source: str = ""
    embedded: bytes = b""
    record: Dict[str, Any] = field(default_factory=dict)


@dataclass
class DataSet:
    """What a reader found.

    Args:
        names (list[str]): of the classes, in the order of their indices.
        splits (dict[str, list[Picture]]): ``train``, and ``val`` and ``test`` where there are any.
        notes (Counter): what was left out or changed, and how often.
        ids (list[int]): of the categories, where a COCO file has given them; else 1, 2, 3, ...
        headers (dict[str, dict]): of each split, what its COCO file has, without ``images`` and
            ``annotations``, which are ``None``.
        root (str): folder that the names of images in COCO records start from.
    """

    names: List[str]
    splits: Dict[str, List[Picture]]
    notes: Counter = field(default_factory=Counter)
    ids: List[int] = field(default_factory=list)
    headers: Dict[str, Dict[str, Any]] = field(default_factory=dict)
    root: str = ""

    def pictures(self) -> List[Picture]:
        """Those of all splits."""
        return [picture for pictures in self.splits.values() for picture in pictures]


class Problems:
    """What is wrong with the labels: all is looked at, and one line says it."""

    def __init__(self):
        self._first: List[Tuple[str, str]] = []
        self._count = 0

    def add(self, where: str, what: str) -> None:
        """
        Args:
            where (str): file, and line or object.
            what (str): what is wrong, and what to write instead.
        """
        self._count += 1
        if len(self._first) < 3:
            self._first.append((where, what))

    def stop_if_any(self) -> None:
        """
        Raises:
            UserError: if anything was added.
        """
        if not self._first:
            return
        (where, what), others = self._first[0], self._first[1:]
        message = f"{where}: {what}"
        if others:
            places = "; ".join(where for where, _ in others)
            message += f" (and {self._count - 1} more mistakes: {places}"
            message += "; ...)" if self._count > len(self._first) else ")"
        raise UserError(printable(message))


def progress(items: Iterable[Any], what: str) -> Iterable[Any]:
    """The same items, with a progress bar where there are many."""
    items = list(items)
    return tqdm(items, desc=what, disable=len(items) < _SLOW)


def files_in(folder: str, endings: Tuple[str, ...]) -> List[str]:
    """The files of these endings in a folder and in those in it, but for hidden ones; sorted."""
    return [path for path in files_below(folder)[0] if path.lower().endswith(endings)]


def note_left_out(data: DataSet, folders: Iterable[str], taken: Iterable[str]) -> None:
    """Count and name what is in folders and was not taken, in the notes.

    Args:
        data (DataSet): its images and the files of their labels were taken.
        folders (iterable of str): to look into.
        taken (iterable of str): other files that were.
    """
    known = {os.path.realpath(path) for p in data.pictures() for path in (p.path, p.source)}
    known.update(map(os.path.realpath, taken))
    left_out: Dict[str, List[str]] = {}
    for folder in dict.fromkeys(folders):
        files, passed_over = files_below(folder)
        for path in files + passed_over:
            if os.path.realpath(path) not in known or path.endswith("/"):
                name = os.path.relpath(path, folder) + "/" * path.endswith("/")
                left_out.setdefault(_kind(path), []).append(name)
    for kind, names in sorted(left_out.items()):
        data.notes[f"{kind} not taken ({first(names, 3)})"] += len(names)


def _kind(path: str) -> str:
    ending = os.path.splitext(path)[1].lower()
    if path.endswith("/"):
        return "hidden or linked folders"
    if os.path.basename(path).startswith("."):
        return "hidden files"
    if is_image_name(path):
        return "images"
    return f"files ending in {printable(ending)}" if ending else "files without an ending"


def split_of(path: str, root: str) -> str:
    """The split that a file's folder names: ``train``, ``val`` (or ``valid``), ``test``; or ``""``.

    Args:
        path (str): of a file in ``root``.
        root (str): the folder of the data set.
    """
    for part in os.path.relpath(path, root).split(os.sep)[:-1]:
        name = SPLIT_NAMES.get(part.lower())
        if name:
            return name
    return ""


SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


def in_order(splits: Dict[str, List[Picture]]) -> Dict[str, List[Picture]]:
    """The splits that have images, ``train`` first."""
    return {name: splits[name] for name in ("train", "val", "test") if splits.get(name)}


def common_folder(pictures: Iterable[Picture]) -> str:
    """The folder that all images are in, or in folders of."""
    return os.path.commonpath([os.path.dirname(picture.path) for picture in pictures])


def claim(claims: Dict[str, str], path: str, source: str, problems: Problems) -> bool:
    """Note which file labels an image; two that do are a problem.

    Args:
        claims (dict[str, str]): image to label file; changed.
        path (str): of the image.
        source (str): of the labels.
        problems (Problems): gets a line.

    Returns:
        bool: whether the image is this file's.
    """
    other = claims.setdefault(os.path.realpath(path), source)
    if other != source:
        problems.add(source, f"is of the image {path}, as is {other}; leave one of the two files")
    return other == source
