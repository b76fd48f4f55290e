"""COCO-format annotation files, and Detectron2's records of them, made one at a time.

A file is scanned once: of each annotation, its place in the file, its image, its class and a few
flags are kept in arrays; its JSON is read again when a record is asked for. So a process
needs memory for a small part of the file, which forked workers share, and all processes of the
machine share the pages of the file.

msgspec finds where each annotation is, orjson decodes it. hotcoco 1.3 was measured on a file of
COCO's size (426 MB, 118,000 images, 826,000 polygons): its loading, its health check and one look
at each record take 5.2 CPU seconds, to which the checks below would be added; this file with all
checks, up to the first batch, takes 7.8. hotcoco needs 726 MiB in each process, this file 110.
hotcoco also hides mistakes that the check must find (a missing ``id``, ``file_name`` or ``bbox``,
``"image_id": 1.0``, ``"iscrowd": 2``), has no check of polygons, RLEs and keypoints, and turns
integers into fractions.
"""

import itertools
import json
import mmap
import os
from array import array
from collections.abc import Sequence
from typing import Any, Callable, Dict, Iterable, Iterator, List, Tuple

import msgspec
import numpy as np
import orjson
import pycocotools.mask as mask_util

from ..errors import UserError
from ..files import path_manager
from .opening import image_path

# Flags of an annotation.
_CROWD, _RLE = 1, 2
_KEYS = ("iscrowd", "bbox", "keypoints", "category_id")

Annotation = Dict[str, Any]


class NotPlain(Exception):
    """Only ``json``, or only Detectron2, can read the file; the text is the reason."""


# ---- the file ----


class AnnotationFile:
    """A JSON file with the keys ``images``, ``annotations`` and ``categories``.

    Args:
        path (str): anything that Detectron2's ``PathManager`` opens.
        plain (bool): False reads the file with ``json``, which takes ``NaN``, halves of characters
            and integers of any length, and says where a mistake is.

    Attributes:
        content (dict[str, Any]): everything but ``annotations``.
        source (Source): the JSON of the annotations.
        is_plain (bool): as ``plain``.

    Raises:
        UserError: if the file cannot be read, or is not a JSON object; the message does not name
            the file.
        NotPlain: if only ``json`` can read it.
    """

    def __init__(self, path: str, plain: bool = True):
        self.is_plain = plain
        self.source = Source(path)
        if plain:
            self._find_annotations()
        else:
            self._read_with_json()

    def __len__(self) -> int:
        """The number of annotations."""
        return len(self._sizes)

    def records(self, key: str) -> List[Dict[str, Any]]:
        """Return the objects of ``images`` or ``categories``.

        Raises:
            UserError: if the key is missing, or is not a list of objects.
        """
        return _list_of_objects(self.content, key)

    def annotations(self) -> Iterator[Tuple[int, bytes, Annotation]]:
        """Decode the annotations, in the order of the file.

        Yields:
            tuple[int, bytes, dict]: where its JSON starts in :attr:`source`, this JSON, and the
            annotation.

        Raises:
            NotPlain: if one is not an object, or only ``json`` can read it.
        """
        content, loads, end = self.source.map(), self.source.loads, self._start
        try:
            for size in self._sizes:
                start = content.find(b"{", end)  # behind a comma and spaces
                end = start + size
                text = content[start:end]
                yield start, text, loads(text)
        except ValueError as e:
            raise NotPlain(str(e)) from None
        if end != self._end:
            raise NotPlain("'annotations' must be a list of objects")

    def _find_annotations(self) -> None:
        content = self.source.map()
        try:
            found = msgspec.json.decode(content, type=_Layout).annotations
            self._start, self._end, self._sizes = 0, 0, array("i", map(len, found))
            rest = b""
            if found:
                first, last = (_address(text) - _address(content) for text in (found[0], found[-1]))
                self._start, self._end = content.rfind(b"[", 0, first), last + len(found[-1])
                rest = content[: self._start + 1]
            self.content = orjson.loads(rest + content[self._end :])
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
        self._sizes = array("i", map(len, texts))
        self._start, self._end = 0, sum(self._sizes)
        self.source.keep(b"".join(texts))


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


class Source:
    """The bytes of an annotation file, read from the file when they are asked for.

    Args:
        path (str): anything that Detectron2's ``PathManager`` opens.

    Attributes:
        loads (callable): decodes the JSON of an annotation.
        version (tuple[int, int]): size of the file in bytes, and its time in nanoseconds.

    Raises:
        UserError: if the file cannot be read; the message does not name it.
    """

    def __init__(self, path: str):
        try:
            self.path = path_manager(path).get_local_path(path)
            self._open()
            self.version = self._find_version()
        except FileNotFoundError:
            raise UserError("there is no such annotation file") from None
        except OSError as e:
            raise UserError(f"cannot be read: {e}") from None
        self._in_memory: bytes | None = None
        self.loads: Callable[[bytes], Any] = orjson.loads

    def keep(self, content: bytes) -> None:
        """Use these bytes, written by ``json``, instead of the file from now on."""
        self._in_memory, self.loads = content, json.loads

    def map(self) -> Any:
        """Return all bytes, as a ``mmap`` or ``bytes``."""
        return self.file_content() if self._in_memory is None else self._in_memory

    def file_content(self) -> Any:
        """Return the content of the file, as a ``mmap`` or ``bytes``."""
        if not self.version[0]:
            return b""  # which cannot be mapped
        return mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)

    def read(self, start: int, size: int) -> Any:
        """Decode the JSON at a place; :meth:`check_version` first."""
        if self._in_memory is not None:
            return self.loads(self._in_memory[start : start + size])
        return self.loads(os.pread(self._file.fileno(), size, start))

    def check_version(self) -> None:
        """Stop if the file was written to since it was read."""
        if self._in_memory is None and self._find_version() != self.version:
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
        if self._in_memory is None:
            self._open()
        self.check_version()


# ---- the records ----


class RecordTable:
    """The columns of an annotation file of N images and M annotations, sorted by image.

    Args:
        source (Source): the JSON of the annotations.
        images (list[dict]): ``id``, ``file_name``, ``height`` and ``width`` of each, checked.
        category_ids (iterable of int): in any order.

    Attributes:
        image_ids (ndarray): (N,), int64, ascending.
        sizes (ndarray): (N, 2), int32, height and width in pixels.
        first (ndarray): (N + 1,), int64: the first annotation of each image.
        classes (ndarray): (M,), int32: class indices.
        flags (ndarray): (M,), uint8.
        visible_keypoints (ndarray): (N,), int64: how many have a visibility above 0.
    """

    def __init__(self, source: Source, images: List[Dict[str, Any]], category_ids: Iterable[int]):
        images = sorted(images, key=lambda image: image["id"])
        self.source = source
        self.class_of_id = {c: i for i, c in enumerate(sorted(category_ids))}
        self.image_ids = np.array([image["id"] for image in images], dtype=np.int64)
        self.sizes = np.array([[i["height"], i["width"]] for i in images], dtype=np.int32)
        # Not as strings, whose reference counts would unshare the memory of forked workers.
        names = [image["file_name"].encode("utf-8", "surrogateescape") for image in images]
        self._names, self._name_ends = b"".join(names), np.cumsum([0, *map(len, names)])
        self._images, self._starts, self._sizes = array("q"), array("q"), array("i")
        self._classes, self._flags = array("i"), array("B")
        self._with_keypoints, self._num_visible = array("q"), array("i")

    def adder(self) -> Callable[[int, bytes, Annotation], None]:
        """Return a function that adds an item of :meth:`AnnotationFile.annotations`."""
        class_of_id = self.class_of_id
        columns = (self._images, self._classes, self._starts, self._sizes, self._flags)
        add_image, add_class, add_start, add_size, add_flags = (c.append for c in columns)

        def add(start: int, text: bytes, annotation: Annotation) -> None:
            add_class(class_of_id[annotation["category_id"]])
            # Its place is looked up later, for all at once: here, that would miss the CPU's cache.
            add_image(annotation["image_id"])
            add_start(start)
            add_size(len(text))
            flags = _CROWD if annotation.get("iscrowd", 0) else 0
            add_flags(flags | _RLE if type(annotation.get("segmentation")) is dict else flags)
            keypoints = annotation.get("keypoints")
            if keypoints:
                self._with_keypoints.append(annotation["image_id"])
                self._num_visible.append(sum(v > 0 for v in keypoints[2::3]))

        return add

    def finish(self) -> "RecordTable":
        """Sort the annotations by image, those of an image in the order of the file.

        Raises:
            LookupError: if an annotation is of an unknown image.
        """
        places, num_images = self._find_places(self._images), len(self.image_ids)
        order = np.lexsort((np.frombuffer(self._starts, dtype=np.int64), places))
        self.first = np.concatenate([[0], np.cumsum(np.bincount(places, minlength=num_images))])
        self.starts = np.frombuffer(self._starts, dtype=np.int64)[order]
        self.text_sizes = np.frombuffer(self._sizes, dtype=np.int32)[order]
        self.classes = np.frombuffer(self._classes, dtype=np.int32)[order]
        self.flags = np.frombuffer(self._flags, dtype=np.uint8)[order]
        with_keypoints = self._find_places(self._with_keypoints)
        visible = np.bincount(with_keypoints, self._num_visible, minlength=num_images)
        self.visible_keypoints = visible.astype(np.int64)
        del self._images, self._starts, self._sizes, self._classes, self._flags
        del self._with_keypoints, self._num_visible
        return self

    def _find_places(self, image_ids: array) -> np.ndarray:
        ids = np.frombuffer(image_ids, dtype=np.int64)
        places = np.searchsorted(self.image_ids, ids).clip(max=len(self.image_ids) - 1)
        if (self.image_ids[places] != ids).any():
            raise LookupError("an annotation is of an image that is not there")
        return places

    def file_name(self, place: int) -> str:
        """Return the name of the image at a place, relative to the image folder."""
        start, end = self._name_ends[place : place + 2].tolist()
        return self._names[start:end].decode("utf-8", "surrogateescape")

    def annotations(self, place: int) -> List[Annotation]:
        """Read the annotations of the image at a place, in COCO's format."""
        self.source.check_version()
        first, last = self.first[place : place + 2].tolist()
        starts, sizes = self.starts[first:last].tolist(), self.text_sizes[first:last].tolist()
        return [self.source.read(start, size) for start, size in zip(starts, sizes)]


class CocoRecords(Sequence):
    """A list of Detectron2's dicts, each of which is made when it is asked for.

    An item is a dict of its own each time. Setting its keys is remembered, as Detectron2's
    ``load_proposals_into_dataset`` does it; a change deeper inside, such as in one of its
    annotations, is not: use ``list(records)`` for that.

    Args:
        table (RecordTable): of all images.
        image_root (str): image folder.
        chosen (ndarray or None): int64, the places of the records in the table; None for all.

    Attributes:
        table, chosen: as given.
    """

    def __init__(self, table: RecordTable, image_root: str, chosen: np.ndarray | None = None):
        self.table = table
        self.chosen = np.arange(len(table.image_ids)) if chosen is None else chosen
        self._image_root = image_root
        self._changed: Dict[int, _Record] = {}

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = int(self.chosen[range(len(self))[index]])
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

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} images in {self._image_root})"

    def select(self, chosen: Any) -> "CocoRecords":
        """Some of the records.

        Args:
            chosen (ndarray or slice): bool, one for each record, or places among them.

        Returns:
            CocoRecords: of the same table, with the keys that were set so far.
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


class JoinedRecords(Sequence):
    """The records of several data sets, one after the other.

    Args:
        parts (list[CocoRecords]): of each.
    """

    def __init__(self, parts: List[CocoRecords]):
        self._parts = parts
        self._starts = list(itertools.accumulate(map(len, parts), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
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

    Args:
        annotation (dict): in COCO's format; not changed.
        class_of_id (dict[int, int]): from category ids to class indices.

    Returns:
        dict: or None for one whose polygons all have fewer than three points.
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
