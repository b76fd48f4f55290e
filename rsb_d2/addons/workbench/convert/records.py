"""Images with their objects in pixels, which all formats are read into and written from."""

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Callable, Collection, Dict, Iterable, List, Mapping, Tuple

from tqdm import tqdm

from ....data.images import BadImageError, image_size, is_image_name
from ....errors import UserError, count, first, printable
from ....files import files_below

_SLOW = 2000  # number of files from which a progress bar is shown

# Beginnings of the notes that count objects, and images, that are left out: the numbers that are
# read less these are written.
OBJECTS_LEFT_OUT = (
    *("objects of no area", "objects listed twice", "objects of images in no list"),
    *("boxes of one pixel", "points", "masks without a pixel", "shapes joined"),
    *("annotations that cannot be used", "crowds left out"),
)
_UNREADABLE = "images without a label file that cannot be read left out"
IMAGES_LEFT_OUT = ("images without a label file", "images in no list")

Size = Tuple[int, int]  # width, height
Polygon = List[float]  # x, y, x, y, ... in pixels


@dataclass
class Object:
    """One object of an image.

    Args:
        category (str): class name.
        box (tuple[float, float, float, float]): x, y, width, height in pixels from the left and
            upper edge of the image.
        polygons (list[Polygon]): the mask; empty if the object has only a box.
        rle (dict or None): the mask as COCO's run lengths.
        crowd (bool): whether the object is neither trained on nor counted in evaluations.
        where (str): the place in the file, for messages.
        record (dict): the unchanged annotation of a COCO file.
        position (int): index of that annotation in all files.
        is_cut (bool): whether the object was cut at the edge of its image, so that box and mask of
            ``record`` are outdated.
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
        path (str): absolute path.
        size (tuple[int, int]): width and height in pixels, upright by the EXIF orientation.
        objects (list[Object]): its objects.
        source (str): its label file, or ``""``.
        embedded (bytes): the image file, if it exists only in the label file; it will be written to
            ``path``.
        record (dict): the image record of a COCO file, with a name relative to
            :attr:`DataSet.root`.
        num_read (int): objects in its label file, including those that are left out.
    """

    path: str
    size: Tuple[int, int]
    objects: List[Object] = field(default_factory=list)
    source: str = ""
    embedded: bytes = b""
    record: Dict[str, Any] = field(default_factory=dict)
    num_read: int = 0


@dataclass
class DataSet:
    """A data set.

    Args:
        names (list[str]): class names by index.
        splits (dict[str, list[Picture]]): the images of ``train``, ``val`` and ``test``, as far as
            there are any.
        notes (Counter): how many items were left out or changed, by reason.
        ids (list[int]): category ids of a COCO file; 1, 2, 3, ... if empty.
        headers (dict[str, dict]): contents of each split's COCO file in which ``images`` and
            ``annotations`` are ``None``.
        root (str): folder that image names in COCO records are relative to.
        images_read (int): images in the files, including those that are left out.
        objects_read (int): objects in the files, including those that are left out.
    """

    names: List[str]
    splits: Dict[str, List[Picture]]
    notes: Counter = field(default_factory=Counter)
    ids: List[int] = field(default_factory=list)
    headers: Dict[str, Dict[str, Any]] = field(default_factory=dict)
    root: str = ""
    images_read: int = 0
    objects_read: int = 0

    def count_read(self, pictures: Collection[Picture]) -> None:
        """Set the numbers of images and objects in the files, all of whose images are given.

        Unreadable images are counted from the notes.
        """
        unreadable = sum(n for what, n in self.notes.items() if what.startswith(_UNREADABLE))
        self.images_read = len(pictures) + unreadable
        self.objects_read = sum(picture.num_read for picture in pictures)

    def pictures(self) -> List[Picture]:
        """Return the images of all splits."""
        return [picture for pictures in self.splits.values() for picture in pictures]


class Problems:
    """Collects the mistakes in all label files for a one-line error."""

    def __init__(self):
        self._first: List[Tuple[str, str]] = []
        self._count = 0

    def add(self, where: str, what: str) -> None:
        """Add a mistake: file and line or object, and the problem."""
        self._count += 1
        if len(self._first) < 3:
            self._first.append((where, what))

    def stop_if_any(self) -> None:
        """Raise a :class:`UserError` if there are mistakes."""
        if not self._first:
            return
        (where, what), others = self._first[0], self._first[1:]
        message = f"{where}: {what}"
        if others:
            places = "; ".join(where for where, _ in others)
            message += f" (and {count(self._count - 1, 'more mistake')}: {places}"
            message += "; ...)" if self._count > len(self._first) else ")"
        raise UserError(printable(message))


def progress(items: Iterable[Any], what: str) -> Iterable[Any]:
    """Iterate over items, with a progress bar if there are many."""
    items = list(items)
    return tqdm(items, desc=what, disable=len(items) < _SLOW)


def is_number(value: Any) -> bool:
    """Whether a value from a JSON file is a number that a float can hold."""
    return type(value) is float or (type(value) is int and abs(value) < 2**53)


def files_in(folder: str, endings: Tuple[str, ...]) -> List[str]:
    """Return the files with these extensions in a folder and its subfolders, sorted."""
    return [path for path in files_below(folder)[0] if path.lower().endswith(endings)]


def note_left_out(
    data: DataSet,
    folders: Iterable[str],
    taken: Iterable[str],
    kinds: Mapping[str, Callable[[str], bool]] = MappingProxyType({}),
) -> None:
    """Add the unused files in folders to the notes, with their names.

    Args:
        data (DataSet): its images and their label files are used.
        folders (iterable of str): folders to search.
        taken (iterable of str): other files that are used.
        kinds (mapping): functions that recognize a kind of files, by its name.
    """
    known = {os.path.realpath(path) for p in data.pictures() for path in (p.path, p.source)}
    known.update(map(os.path.realpath, taken))
    left_out: Dict[str, List[str]] = {}
    folders = dict.fromkeys(map(os.path.normpath, folders))
    for folder in folders:
        if any(parent in folders for parent in _parents(folder)):
            continue  # listed with the folder above
        files, passed_over = files_below(folder)
        for path in files + passed_over:
            if os.path.realpath(path) not in known or path.endswith("/"):
                name = os.path.relpath(path, folder) + "/" * path.endswith("/")
                kind = next((k for k, is_kind in kinds.items() if is_kind(path)), _kind(path))
                left_out.setdefault(kind, []).append(name)
    for kind, names in sorted(left_out.items()):
        data.notes[f"{kind} not taken ({first(names, 3)})"] += len(names)


def _parents(folder: str) -> Iterable[str]:
    while folder != (folder := os.path.dirname(folder)):
        yield folder


def note_unreadable(notes: Counter, paths: Collection[str]) -> None:
    """Add images that cannot be read to the notes; without labels, nothing is lost."""
    notes[f"{_UNREADABLE} ({first(map(os.path.basename, paths), 3)})"] += len(paths)


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
    """Return the split that a folder of a file is called, or ``""``.

    Args:
        path (str): a file in ``root``.
        root (str): the folder of the data set.
    """
    for part in os.path.relpath(path, root).split(os.sep)[:-1]:
        # CVAT calls them obj_train_data.
        name = SPLIT_NAMES.get(part.lower().removeprefix("obj_").removesuffix("_data"))
        if name:
            return name
    return ""


def split_in_name(path: str, root: str) -> str:
    """Return the split that a word of a file's name, or of a folder's, names: else ``train``."""
    words = re.findall("[a-z]+", os.path.relpath(path, root).lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), "train")


SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


def end_below(path: str, root: str, splits: Collection[str] = SPLIT_NAMES) -> str | None:
    """Return the longest end of a path of another machine that exists in a folder, or None.

    Args:
        path (str): a path of any operating system.
        root (str): the folder.
        splits (collection of str): names of folders that the end must include, in lower case: the
            rest of the path would be of another split.
    """
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    for begin in range(len(parts)):
        candidate = os.path.join(root, *parts[begin:])
        if os.path.exists(candidate):
            return os.path.normpath(candidate)
        if parts[begin].lower() in splits:
            return None
    return None


def in_order(splits: Dict[str, List[Picture]]) -> Dict[str, List[Picture]]:
    """Return the splits that have images, ``train`` first."""
    return {name: splits[name] for name in ("train", "val", "test") if splits.get(name)}


def common_folder(pictures: Iterable[Picture]) -> str:
    """Return the deepest folder that contains all images, also in subfolders."""
    return os.path.commonpath([os.path.dirname(picture.path) for picture in pictures])


def claim(claims: Dict[str, str], path: str, source: str, problems: Problems) -> bool:
    """Return whether a label file is the only one of an image so far; others are a mistake.

    Args:
        claims (dict[str, str]): label files by image; extended.
        path (str): the image.
        source (str): the label file.
        problems (Problems): collects the mistake.
    """
    other = claims.setdefault(os.path.realpath(path), source)
    if other != source:
        problems.add(source, f"is of the image {path}, as is {other}; remove one of the two files")
    return other == source


# ---- images of label files ----


# Names of folders of images, next to a folder of label files or in it, in any case.
_FOLDERS = ("jpegimages", "images", "image", "imgs", "img")


class ImageFinder:
    """Finds the image of a label file by the name in it, or by the name of the label file.

    Args:
        root (str): folder of the data set.
        images (str): folder of the images; ``""`` for that of the label file, and for folders
            called ``JPEGImages``, ``images`` and the like in it, next to it or next to a folder
            above it in the data set: they may have the same subfolders.
    """

    def __init__(self, root: str, images: str):
        self._root = root
        self._images = images
        self._searched: Dict[str, List[str]] = {}  # by the folder of the label file
        self._listings: Dict[str, Dict[str, List[str]]] = {}
        self.unreadable: List[str] = []  # images without a label file

    def find(self, file: str, name: str, problems: Problems) -> Tuple[str | None, Size]:
        """Return the absolute path of an image, or None, and its width and height.

        Args:
            file (str): a label file.
            name (str): the name of its image; a path of any operating system, or ``""``.
            problems (Problems): collects images that are missing or cannot be read.
        """
        path = self.look(file, name)
        if path is None:
            hint = "" if self._images else "; --images names the folder of the images"
            problems.add(file, f"is of the image {name or '(no name)'}, which does not exist{hint}")
            return None, (0, 0)
        try:
            return path, image_size(path)
        except BadImageError as e:
            problems.add(file, str(e))
            return None, (0, 0)

    def look(self, file: str, name: str) -> str | None:
        """Return the absolute path of an image, or None; arguments as in :meth:`find`."""
        name = name.replace("\\", "/")
        folders = self._folders(file)
        for candidate in (name, os.path.basename(name)):
            for folder in folders:
                path = os.path.join(folder, candidate)
                if candidate and os.path.isfile(path):
                    return os.path.abspath(path)
        # The image was renamed: use the only one with the stem of that name or of the label file.
        for stem in (os.path.basename(name), os.path.basename(file)):
            for folder in folders:
                found = self._listing(folder).get(os.path.splitext(stem)[0], [])
                if len(found) == 1:
                    return os.path.abspath(os.path.join(folder, found[0]))
        above = os.path.dirname(os.path.dirname(os.path.abspath(file)))
        path = os.path.join(above, os.path.basename(name))
        is_inside = not os.path.relpath(above, self._root).startswith("..")
        if name and is_inside and not self._images and os.path.isfile(path):
            self._listing(above)
            return path
        return None

    def unlabelled(self, labelled: Dict[str, str], notes: Counter) -> List[Picture]:
        """Return the images without a label file in all searched folders: background.

        Args:
            labelled (dict[str, str]): label files by real path of the image.
            notes (Counter): counts images that cannot be read, which are left out.
        """
        paths = {
            os.path.abspath(os.path.join(folder, name))
            for folder, listing in self._listings.items()
            for names in listing.values()
            for name in names
        }
        # Only once if a folder is a link to another.
        found = {os.path.realpath(path): path for path in sorted(paths, reverse=True)}
        paths = sorted(path for real, path in found.items() if real not in labelled)
        pictures, self.unreadable = [], []
        for path in paths:
            try:
                pictures.append(Picture(path, image_size(path)))
            except BadImageError:
                self.unreadable.append(path)
        note_unreadable(notes, self.unreadable)
        return pictures

    def by_folder(self, pictures: List[Picture]) -> Dict[str, List[Picture]]:
        """Split images by folders called ``train``, ``val`` and ``test``; others are ``train``."""
        splits: Dict[str, List[Picture]] = {}
        root = os.path.abspath(self._root)
        for picture in pictures:
            name = split_of(os.path.abspath(picture.source or picture.path), root)
            splits.setdefault(name or "train", []).append(picture)
        return splits

    def other_size(self, image: str, stated: Size, size: Size) -> str:
        """Return the message for an image that has another size than its label file states."""
        reason = f"says {stated[0]} x {stated[1]} pixels, but {image} has {size[0]} x {size[1]}"
        if stated == size[::-1]:
            reason += "; if its EXIF orientation turns it, label the upright image"
        return reason

    def _folders(self, file: str) -> List[str]:
        own = os.path.dirname(file) or "."
        if own not in self._searched:
            folders = [self._images] if self._images else [own, *self._folders_beside(own)]
            self._searched[own] = [folder for folder in folders if os.path.isdir(folder)]
            for folder in self._searched[own]:
                self._listing(folder)
        return self._searched[own]

    def _folders_beside(self, own: str) -> List[str]:
        """Return the folders for images of a folder of label files, mirrored subfolders first."""
        mirrored, flat = [], []
        above, below = own, []  # and the folders from there to the label files
        while True:
            for other in sorted(os.listdir(above or ".")):
                if other.lower() in _FOLDERS:
                    mirrored.append(os.path.normpath(os.path.join(above, other, *below[1:])))
                    flat.append(os.path.normpath(os.path.join(above, other)))
            is_top = os.path.relpath(above or ".", self._root).startswith(".")  # or ".."
            above, name = os.path.split(above)
            if not name or (is_top and below):
                return list(dict.fromkeys(mirrored + flat))
            below = [name, *below]

    def _listing(self, folder: str) -> Dict[str, List[str]]:
        """Return the names of the images in a folder by their stems."""
        if folder not in self._listings:
            listing: Dict[str, List[str]] = {}
            names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
            for name in names:
                if is_image_name(name):
                    listing.setdefault(os.path.splitext(name)[0], []).append(name)
            self._listings[folder] = listing
        return self._listings[folder]
