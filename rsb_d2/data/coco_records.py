"""COCO-format annotation files, and Detectron2's records of them, made one at a time.

A file is scanned once: arrays keep the place of each annotation in the file, its image, its class
and a few flags. A record is made from the JSON of its annotations when it is requested. So a
process needs memory for a small part of the file, which forked workers share, and all processes of
the machine share the pages of the file.

msgspec finds and decodes annotations, those of a usual form without a dict of each. A file of
COCO's size (426 MB, 118,000 images, 826,000 polygons) takes 3.1 CPU seconds with all checks, up to
the first batch. hotcoco 1.3 takes 3.3 s for loading, health check and one look at each record, to
which the checks below would be added, and 728 MiB in each process, this file 100. hotcoco also
accepts mistakes that the check must find (a missing ``id``, ``file_name`` or ``bbox``,
``"image_id": 1.0``, ``"iscrowd": 2``), has no check of polygons, RLEs and keypoints, and turns
integers into fractions.
"""

import itertools
import json
import mmap
import os
from collections.abc import Sequence
from typing import Annotated, Any, Dict, Iterable, Iterator, List, Literal, Tuple, TypedDict

import msgspec
import numpy as np
import orjson
import pycocotools.mask as mask_util
from msgspec import UNSET, Meta, UnsetType

from ..errors import UserError
from ..files import path_manager
from .masks import is_polygon
from .opening import image_path

# Flags of an annotation.
_CROWD, _RLE = 1, 2
_KEYS = ("iscrowd", "bbox", "keypoints", "category_id")
# COCOeval leaves out objects with a larger area (its areaRng), and those with one below 0.
MAX_AREA = 1e5**2
# So many annotations are decoded together.
_CHUNK = 500

Annotation = Dict[str, Any]


class NotPlain(Exception):
    """Only ``json``, or only Detectron2, can read the file; the text is the reason."""


# ---- the file ----


class AnnotationFile:
    """A JSON file with the keys ``images``, ``annotations`` and ``categories``.

    Args:
        path (str): anything that Detectron2's ``PathManager`` opens.
        plain (bool): False reads the file with ``json``, which accepts ``NaN``, halves of
            characters and integers of any length, and says where a mistake is.

    Attributes:
        content (dict[str, Any]): everything but ``annotations``.
        source (Source): the JSON of the annotations.
        starts (ndarray): (M,), int64: the place of each annotation in :attr:`source`.
        sizes (ndarray): (M,), int32: the bytes of its JSON.

    Raises:
        UserError: if the file cannot be read, or is not a JSON object; the message does not name
            the file.
        NotPlain: if only ``json`` can read it.
    """

    def __init__(self, path: str, plain: bool = True):
        self.source = Source(path)
        if plain:
            self._find_annotations()
        else:
            self._read_with_json()

    def __len__(self) -> int:
        """The number of annotations, M."""
        return len(self.sizes)

    def records(self, key: str) -> List[Dict[str, Any]]:
        """Return the objects of ``images`` or ``categories``; anything else is an error."""
        return _list_of_objects(self.content, key)

    def annotations(self, indices: Iterable[int] | None = None) -> Iterator[Annotation]:
        """Decode annotations: those at the indices, or all, in the order of the file.

        Raises:
            NotPlain: if only ``json`` can read one.
        """
        for i in range(len(self)) if indices is None else indices:
            try:
                yield self.source.loads(self._text(i, i + 1))
            except ValueError as e:
                raise NotPlain(str(e)) from None

    def decode(self, decoder: msgspec.json.Decoder) -> Iterator[Tuple[int, List[Any]]]:
        """Decode all annotations with a decoder of lists, up to some hundreds at a time.

        Yields:
            tuple[int, list]: the index of the first one of some neighbors, and their values.
            Annotations that the decoder refuses are left out.

        Raises:
            NotPlain: if the text of one is not UTF-8.
        """
        ranges = [(i, min(i + _CHUNK, len(self))) for i in range(0, len(self), _CHUNK)][::-1]
        while ranges:
            first, last = ranges.pop()
            try:
                yield first, decoder.decode(b"[%b]" % self._text(first, last))
            except msgspec.MsgspecError:
                middle = (first + last) // 2
                if middle > first:
                    ranges += [(middle, last), (first, middle)]

    def _text(self, first: int, last: int) -> bytes:
        """Return the JSON of some neighbors, separated by commas."""
        start = self.starts[first]
        text = self.source.text(start, self.starts[last - 1] + self.sizes[last - 1] - start)
        try:
            text.isascii() or text.decode()  # msgspec does not check strings that it skips
        except UnicodeDecodeError as e:
            raise NotPlain(str(e)) from None
        return text

    def _find_annotations(self) -> None:
        content = self.source.map()
        try:
            found = msgspec.json.decode(content, type=_Layout).annotations
            self.sizes = np.fromiter(map(len, found), dtype=np.int32, count=len(found))
            self.starts, start, end = np.zeros(0, dtype=np.int64), 0, 0
            if found:
                first, last = (_address(text) - _address(content) for text in (found[0], found[-1]))
                start, end = content.rfind(b"[", 0, first) + 1, last + len(found[-1])
                self.starts = _find_starts(content, first, self.sizes)
                if self.starts[-1] != last or content[first : first + 1] != b"{":
                    raise NotPlain("'annotations' must be a list of objects")
            self.content = orjson.loads(content[:start] + content[end:])
        except (msgspec.MsgspecError, ValueError, RecursionError) as e:
            raise NotPlain(str(e)) from None
        del self.content["annotations"]

    def _read_with_json(self) -> None:
        try:
            content = json.loads(self.source.map()[:].decode("utf-8"))
        except UnicodeDecodeError:
            raise UserError("is not UTF-8 text; save it as JSON in UTF-8") from None
        except ValueError as e:  # JSONDecodeError, and a number of more digits than Python takes
            raise UserError(f"is not valid JSON: {e}") from None
        except RecursionError:
            raise UserError("is not in COCO's format: its lists are nested too deeply") from None
        if not isinstance(content, dict):
            raise UserError(
                "is not in COCO's format: at the top there must be an object with the keys "
                f"'images', 'annotations' and 'categories', not a {type(content).__name__}"
            )
        annotations = _list_of_objects(content, "annotations")
        self.content = {key: value for key, value in content.items() if key != "annotations"}
        texts = [json.dumps(annotation).encode() for annotation in annotations]
        self.sizes = np.array([len(text) for text in texts], dtype=np.int32)
        self.starts = np.cumsum([0, *(self.sizes + 1)])[:-1]
        self.source.in_memory = b",".join(texts)


class _Layout(msgspec.Struct, gc=False):
    annotations: List[msgspec.Raw]


def _address(buffer: Any) -> int:
    return np.frombuffer(buffer, dtype=np.uint8).__array_interface__["data"][0]


def _list_of_objects(content: Dict[str, Any], key: str) -> List[Dict[str, Any]]:
    if key not in content:
        raise UserError(f"is not in COCO's format: there is no key '{key}'")
    records = content[key]
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise UserError(f"is not in COCO's format: '{key}' must be a list of objects")
    return records


def _find_starts(content: Any, first: int, sizes: np.ndarray) -> np.ndarray:
    """Return where the objects of a list start, from the start of the first one and their sizes."""
    # Nearly always, the same bytes separate all of them.
    end = first + int(sizes[0])
    gap = content[end : max(end, content.find(b"{", end))] if len(sizes) > 1 else b""
    starts = first + np.cumsum(np.concatenate([[0], sizes[:-1] + len(gap)]))
    if starts[-1] < len(content):
        text = np.frombuffer(content, dtype=np.uint8)
        ends = starts[:-1] + sizes[:-1]
        if all((text[ends + i] == byte).all() for i, byte in enumerate(gap + b"{")):
            return starts
    starts = np.zeros(len(sizes), dtype=np.int64)
    end = first
    for i, size in enumerate(sizes.tolist()):
        starts[i] = content.find(b"{", end)  # behind a comma and spaces
        end = int(starts[i]) + size
    return starts


class Source:
    """The bytes of an annotation file, read from the file on demand.

    Attributes:
        version (tuple[int, int]): size of the file in bytes, and its time in nanoseconds.
        in_memory (bytes or None): JSON of the annotations by ``json``, used instead of the file.

    Raises:
        UserError: if the file cannot be read; the message does not name it.
    """

    def __init__(self, path: str):
        self.in_memory: bytes | None = None
        try:
            self.path = path_manager(path).get_local_path(path)
            self._open()
            self.version = self._find_version()
        except FileNotFoundError:
            raise UserError("there is no such annotation file") from None
        except OSError as e:
            raise UserError(f"cannot be read: {e}") from None

    def map(self) -> Any:
        """Return the content of the file, as a ``mmap`` or ``bytes``."""
        if not self.version[0]:
            return b""  # which cannot be mapped
        return mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)

    def text(self, start: int, size: int) -> bytes:
        """Return the JSON of some annotations; :meth:`check_version` first."""
        if self.in_memory is not None:
            return self.in_memory[start : start + size]
        return os.pread(self._file.fileno(), size, start)

    def loads(self, text: bytes) -> Annotation:
        """Decode the JSON of an annotation."""
        return (orjson if self.in_memory is None else json).loads(text)

    def loads_fields(self, text: bytes) -> Annotation:
        """Decode the JSON of an annotation, at least the keys of Detectron2's records."""
        return _decode_fields(text) if self.in_memory is None else json.loads(text)

    def check_version(self) -> None:
        """Stop if the file was written to since it was read."""
        if self.in_memory is None and self._find_version() != self.version:
            raise UserError(f"{self.path} has changed since it was read: start again")

    def _open(self) -> None:
        self._file = open(self.path, "rb", buffering=0)

    def _find_version(self) -> Tuple[int, int]:
        stat = os.fstat(self._file.fileno())
        return stat.st_size, stat.st_mtime_ns

    def __getstate__(self) -> Dict[str, Any]:
        """For workers that are not forked, which open the file again."""
        return {key: value for key, value in vars(self).items() if key != "_file"}

    def __setstate__(self, state: Dict[str, Any]) -> None:
        vars(self).update(state)
        if self.in_memory is None:
            self._open()
        self.check_version()


class _Fields(TypedDict, total=False):
    iscrowd: Any
    bbox: Any
    keypoints: Any
    category_id: Any
    segmentation: Any


_decode_fields = msgspec.json.Decoder(_Fields).decode


# ---- the columns of all annotations ----


def _usual_annotations(lowest: float, highest: float) -> msgspec.json.Decoder:
    """Return a decoder of annotations that most rules do not change.

    ``lowest`` and ``highest`` are limits of the coordinates of polygons.
    """
    integer = Annotated[int, Meta(ge=-(2**62), le=2**62)]  # fits into NumPy's
    coordinate = Annotated[float, Meta(ge=lowest, le=highest)]
    polygon = Annotated[List[coordinate], Meta(min_length=6)]
    fields = [
        ("id", Annotated[int, Meta(ge=1, le=2**62)]),
        ("image_id", integer),
        ("category_id", integer),
        ("iscrowd", Literal[0, 1]),
        ("bbox", Tuple[float, float, float, float]),
        ("area", Annotated[float, Meta(ge=0, le=MAX_AREA)]),
        ("segmentation", List[polygon] | Dict[str, Any] | None, None),
        ("keypoints", List[float] | UnsetType, UNSET),
        ("ignore", Literal[0], 0),
    ]
    return msgspec.json.Decoder(List[msgspec.defstruct("Usual", fields, gc=False)])


class Columns:
    """The annotations of a file with N images and M annotations, in the order of the file.

    The columns are filled in for all annotations of a usual form; :meth:`set` adds others.

    Args:
        file (AnnotationFile): scanned here.
        images (list[dict]): ``id``, ``file_name``, ``height`` and ``width`` of each, checked.
        category_ids (iterable of int): in any order.

    Attributes:
        file (AnnotationFile): as given.
        images (list[dict]): in the order of their ids.
        image_ids (ndarray): (N,), int64, ascending.
        sizes (ndarray): (N, 2), int32, height and width in pixels.
        class_of_id (dict[int, int]): class indices by category id.
        is_set (ndarray): (M,), bool: whether the other columns are filled in.
        ids (ndarray): (M,), int64.
        places (ndarray): (M,), int64: the image among the N; -1 if there is none.
        classes (ndarray): (M,), int64: class indices; -1 for an unknown category.
        flags (ndarray): (M,), uint8.
        boxes (ndarray): (M, 4), float64: x, y, width and height in pixels.
        has_mask (ndarray): (M,), bool: polygons, all of them in reach of the image, or an RLE.
        num_keypoints (ndarray): (M,), int32: the numbers in ``keypoints``; -1 without.
        num_visible (ndarray): (M,), int32: the keypoints with a visibility above 0.
    """

    def __init__(
        self, file: AnnotationFile, images: List[Dict[str, Any]], category_ids: Iterable[int]
    ):
        self.file, length = file, len(file)
        self.images = sorted(images, key=lambda image: image["id"])
        self.image_ids = np.array([image["id"] for image in self.images], dtype=np.int64)
        sizes = [[image["height"], image["width"]] for image in self.images]
        self.sizes = np.array(sizes, dtype=np.int32).reshape(-1, 2)
        self.class_of_id = {c: i for i, c in enumerate(sorted(category_ids))}
        self._category_ids = np.array(sorted(category_ids), dtype=np.int64)
        self.is_set = np.zeros(length, dtype=bool)
        self.ids, self.places, self.classes = np.zeros((3, length), dtype=np.int64)
        self.flags = np.zeros(length, dtype=np.uint8)
        self.boxes = np.zeros((length, 4))
        self.has_mask = np.zeros(length, dtype=bool)
        self.num_keypoints, self.num_visible = np.zeros((2, length), dtype=np.int32)
        self._scan()

    def set(self, index: int, annotation: Annotation) -> None:
        """Fill in the columns of an annotation, but for box, mask and number of keypoints.

        Raises:
            LookupError: if it is of an unknown image or category.
        """
        self.classes[index] = self.class_of_id[annotation["category_id"]]
        self.places[index] = place = _find(self.image_ids, annotation["image_id"])
        if place < 0:
            raise LookupError("an annotation is of an unknown image")
        self.ids[index] = annotation["id"]
        is_rle = type(annotation.get("segmentation")) is dict
        self.flags[index] = _CROWD * bool(annotation.get("iscrowd", 0)) + _RLE * is_rle
        self.num_visible[index] = _num_visible(annotation.get("keypoints") or ())
        self.is_set[index] = True

    @property
    def has_rle(self) -> np.ndarray:
        """(M,), bool: whether the mask is an RLE."""
        return self.flags & _RLE > 0

    def has_duplicates(self) -> bool:
        """Whether two annotations have the same id."""
        ids = np.sort(self.ids)
        return bool((ids[1:] == ids[:-1]).any())

    def _scan(self) -> None:
        sides = self.sizes.max(axis=1, initial=0)
        # Points further from the image than its longer side are a mistake. msgspec finds most of
        # them by these limits, which are strict enough for all but the smaller images.
        reach = 0.55 * float(sides.max(initial=0))
        is_small = sides < reach
        for first, annotations in self.file.decode(_usual_annotations(-reach, 2 * reach)):
            where = slice(first, first + len(annotations))
            numbers = [(a.id, a.image_id, a.category_id, a.iscrowd) for a in annotations]
            ids, image_ids, category_ids, crowds = np.array(numbers, dtype=np.int64).T
            self.ids[where] = ids
            self.places[where] = places = _find(self.image_ids, image_ids)
            self.classes[where] = _find(self._category_ids, category_ids)
            self.boxes[where] = [a.bbox for a in annotations]
            masks = [a.segmentation for a in annotations]
            self.has_mask[where] = list(map(bool, masks))
            is_rle = np.array([type(mask) is dict for mask in masks])
            self.flags[where] = _CROWD * crowds + _RLE * is_rle
            self.num_keypoints[where] = -1
            for i, annotation in enumerate(annotations, first):
                if annotation.keypoints is not UNSET:
                    self.num_keypoints[i] = len(annotation.keypoints)
                    self.num_visible[i] = _num_visible(annotation.keypoints)
            self.is_set[where] = True
            polygons = itertools.chain.from_iterable(m for m in masks if type(m) is list)
            if (np.fromiter(map(len, polygons), dtype=np.int64) % 2).any():
                for i, mask in enumerate(masks, first):
                    if type(mask) is list and any(len(polygon) % 2 for polygon in mask):
                        self.is_set[i] = False
            for i in np.flatnonzero(is_small[places] & self.has_mask[where] & ~is_rle):
                if not all(is_polygon(polygon, self.sizes[places[i]]) for polygon in masks[i]):
                    self.is_set[first + i] = False


def _num_visible(keypoints: Sequence) -> int:
    return sum(v > 0 for v in keypoints[2::3])


def _find(values: np.ndarray, wanted: Any) -> np.ndarray:
    """Return the places of wanted values among ascending ones; -1 for those that are not there."""
    if not len(values):
        return np.full(np.shape(wanted), -1)
    places = np.searchsorted(values, wanted).clip(max=len(values) - 1)
    return np.where(values[places] == wanted, places, -1)


# ---- the records ----


class RecordTable:
    """The columns of an annotation file of N images and M annotations, sorted by image.

    Args:
        columns (Columns): those that are set; none is of an unknown image or category.

    Attributes:
        source (Source): the JSON of the annotations.
        class_of_id (dict[int, int]): class indices by category id.
        image_ids (ndarray): (N,), int64, ascending.
        sizes (ndarray): (N, 2), int32, height and width in pixels.
        first (ndarray): (N + 1,), int64: the first annotation of each image.
        classes (ndarray): (M,), int32: class indices.
        flags (ndarray): (M,), uint8.
        visible_keypoints (ndarray): (N,), int64: how many have a visibility above 0.
    """

    def __init__(self, columns: Columns):
        self.source, self.class_of_id = columns.file.source, columns.class_of_id
        self.image_ids, self.sizes = columns.image_ids, columns.sizes
        # Not as strings, whose reference counts would unshare the memory of forked workers.
        names = [i["file_name"].encode("utf-8", "surrogateescape") for i in columns.images]
        self._names, self._name_ends = b"".join(names), np.cumsum([0, *map(len, names)])
        rows = np.flatnonzero(columns.is_set)
        # Those of an image in the order of the file.
        rows = rows[np.argsort(columns.places[rows], kind="stable")]
        places, num_images = columns.places[rows], len(names)
        self.first = np.concatenate([[0], np.cumsum(np.bincount(places, minlength=num_images))])
        self.starts, self.text_sizes = columns.file.starts[rows], columns.file.sizes[rows]
        self.classes = columns.classes[rows].astype(np.int32)
        self.flags = columns.flags[rows]
        visible = np.bincount(places, columns.num_visible[rows], minlength=num_images)
        self.visible_keypoints = visible.astype(np.int64)

    def file_name(self, place: int) -> str:
        """Return the name of the image at a place, relative to the image folder."""
        start, end = self._name_ends[place : place + 2].tolist()
        return self._names[start:end].decode("utf-8", "surrogateescape")

    def annotations(self, place: int) -> List[Annotation]:
        """Read the annotations of the image at a place, in COCO's format."""
        self.source.check_version()
        first, last = self.first[place : place + 2].tolist()
        starts, sizes = self.starts[first:last].tolist(), self.text_sizes[first:last].tolist()
        loads, text = self.source.loads_fields, self.source.text
        return [loads(text(start, size)) for start, size in zip(starts, sizes)]


class LazyRecords(Sequence):
    """Detectron2's dicts of N images, each made on demand, and columns of all of them."""

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._make(range(len(self))[index])


class CocoRecords(LazyRecords):
    """A list of Detectron2's dicts, each of which is made on demand.

    An item is a new dict each time. Setting its keys is remembered, as
    ``load_proposals_into_dataset`` needs; a change deeper inside, such as in one of its
    annotations, is not: use ``list(records)`` for that.

    Args:
        table (RecordTable): of all images.
        image_root (str): image folder.
        chosen (ndarray or None): int64, the positions of the records in the table; None for all.
    """

    def __init__(self, table: RecordTable, image_root: str, chosen: np.ndarray | None = None):
        self.table = table
        self.chosen = np.arange(len(table.image_ids)) if chosen is None else chosen
        self._image_root = image_root
        self._changed: Dict[int, _Record] = {}

    def __len__(self) -> int:
        return len(self.chosen)

    def _make(self, index: int) -> Dict[str, Any]:
        place = int(self.chosen[index])
        if place in self._changed:
            return self._changed[place]
        table = self.table
        height, width = table.sizes[place].tolist()
        objects = [to_object(a, table.class_of_id) for a in table.annotations(place)]
        record = _Record(
            file_name=image_path(self._image_root, table.file_name(place)),
            height=height,
            width=width,
            image_id=int(table.image_ids[place]),
            annotations=objects,
        )
        record.remember = (self._changed, place)
        return record

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, (list, CocoRecords)):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other))

    __hash__ = None

    def __add__(self, other: Any) -> List[Dict[str, Any]]:
        return [*self, *other]

    def __radd__(self, other: Any) -> List[Dict[str, Any]]:
        return [*other, *self]

    def select(self, chosen: Any) -> "CocoRecords":
        """Return some of the records, with the keys that were set so far.

        ``chosen`` is a slice, a mask with one bool for each record, or positions among them.
        """
        selected = CocoRecords(self.table, self._image_root, self.chosen[chosen])
        selected._changed = dict(self._changed)
        return selected

    # ---- columns of all records, without making a record ----

    def sizes(self) -> np.ndarray:
        """(N, 2), int32: height and width of each image, in pixels."""
        return self.table.sizes[self.chosen]

    def num_objects(self) -> np.ndarray:
        """(N,), int64: the annotations of each image that are not crowds."""
        return self._count(self.table.flags & _CROWD == 0)

    def num_rle_objects(self) -> np.ndarray:
        """(N,), int64: the objects of each image whose mask is an RLE."""
        return self._count(self.table.flags == _RLE)

    def visible_keypoints(self) -> np.ndarray:
        """(N,), int64: the keypoints of each image whose visibility is above 0."""
        return self.table.visible_keypoints[self.chosen]

    def has_rle(self) -> bool:
        """Whether the mask of any annotation, a crowd's too, is an RLE."""
        return bool(self._count(self.table.flags & _RLE > 0).any())

    def classes(self, *, with_crowds: bool) -> Tuple[np.ndarray, np.ndarray]:
        """The class index of each annotation, and the place of its image among these records."""
        table = self.table
        place = np.full(len(table.image_ids), -1)
        place[self.chosen] = np.arange(len(self))
        image = np.repeat(place, np.diff(table.first))
        keep = (image >= 0) & (with_crowds | (table.flags & _CROWD == 0))
        return table.classes[keep], image[keep]

    def _count(self, condition: np.ndarray) -> np.ndarray:
        """How many annotations of each image meet a condition."""
        before = np.concatenate([[0], np.cumsum(condition)])[self.table.first]
        return np.diff(before)[self.chosen]


class JoinedRecords(LazyRecords):
    """The records of several data sets, one after the other."""

    def __init__(self, parts: List[CocoRecords]):
        self._parts = parts
        self._starts = list(itertools.accumulate(map(len, parts), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def _make(self, index: int) -> Dict[str, Any]:
        part = next(i for i, end in enumerate(self._starts[1:]) if index < end)
        return self._parts[part][index - self._starts[part]]

    def sizes(self) -> np.ndarray:
        """As of :class:`CocoRecords`."""
        return np.concatenate([part.sizes() for part in self._parts])

    def classes(self, *, with_crowds: bool) -> Tuple[np.ndarray, np.ndarray]:
        """As of :class:`CocoRecords`."""
        found = [part.classes(with_crowds=with_crowds) for part in self._parts]
        images = [image + start for (_, image), start in zip(found, self._starts)]
        return np.concatenate([classes for classes, _ in found]), np.concatenate(images)

    def has_rle(self) -> bool:
        """As of :class:`CocoRecords`."""
        return any(part.has_rle() for part in self._parts)


class _Record(dict):
    """A dict that its :class:`CocoRecords` remembers as soon as a key of it is set."""

    remember: tuple | None = None

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        if self.remember is not None:
            changed, place = self.remember
            changed[place] = self

    def __reduce__(self):
        return dict, (dict(self),)

    def __copy__(self) -> dict:
        return dict(self)


def to_object(annotation: Annotation, class_of_id: Dict[int, int]) -> Dict[str, Any] | None:
    """Convert an annotation as ``load_coco_json`` does.

    None if all its polygons have fewer than three points.
    """
    found = {key: annotation[key] for key in _KEYS if key in annotation}
    mask = annotation.get("segmentation")
    if isinstance(mask, dict) and mask:
        if isinstance(mask["counts"], list):
            mask = mask_util.frPyObjects(mask, *mask["size"])
        found["segmentation"] = mask
    elif mask:
        mask = [polygon for polygon in mask if len(polygon) % 2 == 0 and len(polygon) >= 6]
        if not mask:
            return None
        found["segmentation"] = mask
    if found.get("keypoints"):
        # From the index of a pixel to the place of its middle.
        found["keypoints"] = [
            value if i % 3 == 2 else value + 0.5 for i, value in enumerate(found["keypoints"])
        ]
    found["category_id"] = class_of_id[annotation["category_id"]]
    from detectron2.structures import BoxMode

    found["bbox_mode"] = BoxMode.XYWH_ABS
    return found
