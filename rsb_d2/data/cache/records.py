"""Records in Detectron2's dataset format, which are made one at a time when they are asked for."""

import zlib
from collections.abc import Sequence
from typing import Any, Callable, Dict, Iterator, List, Tuple

import msgspec
import numpy as np
from detectron2.structures import BoxMode

from ...errors import UserError
from ..opening import image_path
from .arrays import STREAM, Arrays, read_arrays
from .packing import CROWD, HAS_RLE, name_from_bytes

_decode = msgspec.msgpack.Decoder().decode


class PackedRecords(Sequence):
    """A list of Detectron2's dicts, of which none is in memory; all processes share the file.

    An item is a dict of its own each time. Setting its keys is remembered, as
    Detectron2's ``load_proposals_into_dataset`` does it; what is changed deeper inside, as in one
    of its annotations, is not: take ``list(records)`` for that.

    Args:
        arrays (Arrays): what ``RecordPacker`` has packed.
        image_root (str): image folder.
        mend (callable or None): called with the header when a record turns out to be damaged;
            returns the arrays made anew.
        chosen (ndarray or None): int64, the places of the records; None for all.
    """

    def __init__(
        self,
        arrays: Arrays,
        image_root: str,
        mend: Callable[[Dict[str, Any]], Arrays] | None = None,
        chosen: np.ndarray | None = None,
    ):
        self._source = arrays
        self._arrays = arrays.arrays
        self._image_root = image_root
        self._mend = mend
        self._chosen = chosen
        self._changed: Dict[int, _Record] = {}

    def __len__(self) -> int:
        return len(self._arrays["checksums"] if self._chosen is None else self._chosen)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        if self._chosen is not None:
            place = int(self._chosen[place])
        changed = self._changed.get(place)
        if changed is not None:
            return changed
        name, image_id, height, width, _, _, objects = self.stored(place)
        for found in objects:
            found["bbox_mode"] = BoxMode.XYWH_ABS
        record = _Record(
            file_name=image_path(self._image_root, name),
            height=height,
            width=width,
            image_id=image_id,
            annotations=objects,
        )
        record.remember = (self._changed, place)
        return record

    def __iter__(self) -> Iterator[Dict[str, Any]]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, (list, PackedRecords)):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other))

    __hash__ = None

    def __add__(self, other: Any) -> List[Dict[str, Any]]:
        return list(self) + list(other)

    def __radd__(self, other: Any) -> List[Dict[str, Any]]:
        return list(other) + list(self)

    def __reduce__(self):
        """For workers that are not forked: the file is mapped there, not sent."""
        if not self._source.path or self._changed:
            return super().__reduce__()
        return _reopen, (self._source.path, self._image_root, self._mend, self._chosen)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} images in {self._image_root})"

    def select(self, chosen: np.ndarray) -> "PackedRecords":
        """Some of the records.

        Args:
            chosen (ndarray or slice): bool, one for each record, or places among them.

        Returns:
            PackedRecords: with the same arrays, and what was changed so far.
        """
        places = np.arange(len(self)) if self._chosen is None else self._chosen
        selected = PackedRecords(self._source, self._image_root, self._mend, places[chosen])
        selected._changed = dict(self._changed)
        return selected

    def stored(self, place: int) -> List[Any]:
        """What ``packing.py`` has put there, whichever records are chosen."""
        name, *others = _decode(self._piece(place))
        return [name_from_bytes(name), *others]

    def first_annotations(self) -> np.ndarray:
        """(N + 1,), int64: which of all annotations is the first one of each stored image."""
        return self._arrays["first"]

    @property
    def header(self) -> Dict[str, Any]:
        """What was stored beside the records."""
        return self._source.header

    # ---- what is known of all records without making one ----

    def sizes(self) -> np.ndarray:
        """(N, 2), int32: height and width of each image, in pixels."""
        return self._of_images("sizes")

    def file_names(self) -> List[str]:
        """The names of all image files, of the chosen ones and the others, as in the file."""
        return name_from_bytes(self._arrays["names"].tobytes()).split("\0")[:-1]

    def num_objects(self) -> np.ndarray:
        """(N,), int64: the annotations of each image that are no crowds."""
        is_object = (self._arrays["flags"] & CROWD) == 0
        before = np.concatenate([[0], np.cumsum(is_object)])
        first = self._arrays["first"]
        counts = before[first[1:]] - before[first[:-1]]
        return counts if self._chosen is None else counts[self._chosen]

    def visible_keypoints(self) -> np.ndarray:
        """(N,), int32: the keypoints of each image whose visibility is above 0."""
        return self._of_images("visible_keypoints")

    def classes(self, *, with_crowds: bool) -> Tuple[np.ndarray, np.ndarray]:
        """The class index of each annotation, and the place of its image among these records."""
        first = self._arrays["first"]
        image = np.repeat(np.arange(len(first) - 1), np.diff(first))
        classes, keep = self._arrays["classes"], np.ones(len(image), dtype=bool)
        if not with_crowds:
            keep &= (self._arrays["flags"] & CROWD) == 0
        if self._chosen is not None:
            place = np.full(len(first) - 1, -1)
            place[self._chosen] = np.arange(len(self._chosen))
            image = place[image]
            keep &= image >= 0
        return classes[keep], image[keep]

    def has_rle(self) -> bool:
        """Whether the mask of any annotation, a crowd's too, is an RLE."""
        _, image = self.classes(with_crowds=True)
        first, has_rle = self._arrays["first"], (self._arrays["flags"] & HAS_RLE) > 0
        before = np.concatenate([[0], np.cumsum(has_rle)])
        counts = before[first[1:]] - before[first[:-1]]
        return bool((counts if self._chosen is None else counts[self._chosen]).any())

    def _of_images(self, name: str) -> np.ndarray:
        column = self._arrays[name]
        return column if self._chosen is None else column[self._chosen]

    def _piece(self, place: int) -> np.ndarray:
        for is_mended in (False, True):
            start, end = self._arrays["starts"][place : place + 2].tolist()
            piece = self._arrays[STREAM][start:end]
            if zlib.crc32(piece) == self._arrays["checksums"][place]:
                return piece
            if is_mended or self._mend is None:
                raise UserError(f"the record of image {place} in the cache is damaged")
            self._source = self._mend(self._source.header)
            self._arrays = self._source.arrays
        raise AssertionError


def _reopen(path: str, *arguments) -> PackedRecords:
    return PackedRecords(read_arrays(path), *arguments)


class _Record(dict):
    """A dict that its :class:`PackedRecords` remembers as soon as a key of it is set."""

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
