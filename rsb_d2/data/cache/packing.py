"""From COCO's annotations to what is stored: a piece of bytes for each image, and columns.

A piece is MessagePack of ``[file name, image id, height, width, annotation ids, areas, objects]``,
which has all of JSON's types, whole numbers and fractions kept apart, and no code in it. The file
name is bytes, as it need not be UTF-8. An object is what ``load_coco_json`` makes of an annotation,
without ``bbox_mode``.
"""

import io
import mmap
import zlib
from array import array
from typing import IO, Any, Dict, Iterable, Iterator, List, NamedTuple, Tuple

import msgspec
import numpy as np
import pycocotools.mask as mask_util

# Of an annotation, in the column "flags".
CROWD, HAS_MASK, HAS_RLE = 1, 2, 4

_KEYS = ("iscrowd", "bbox", "keypoints", "category_id")


class ImageRecord(NamedTuple):
    """One image of an annotation file.

    Args:
        id (int): its ``id``.
        file_name (str): relative to the image folder.
        height, width (int): in pixels.
    """

    id: int
    file_name: str
    height: int
    width: int


def name_to_bytes(name: str) -> bytes:
    """The bytes of a file name, of which those that are not UTF-8 are surrogates in Python.

    Raises:
        UnicodeEncodeError: for a text that no file name becomes in Python.
    """
    return name.encode("utf-8", "surrogateescape")


def name_from_bytes(name: bytes) -> str:
    """The inverse of :func:`name_to_bytes`."""
    return name.decode("utf-8", "surrogateescape")


def to_object(annotation: Dict[str, Any], class_of_id: Dict[int, int]) -> Dict[str, Any] | None:
    """What ``load_coco_json`` makes of an annotation, but for ``bbox_mode``.

    Args:
        annotation (dict): of COCO's format; not changed.
        class_of_id (dict[int, int]): from category ids to class indices.

    Returns:
        dict: or None for one whose polygons have all less than three points.
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
    return found


class RecordPacker:
    """Takes annotations in any order, and gives the records of the images in that of their ids.

    Args:
        images (iterable of ImageRecord): each id once.
        class_of_id (dict[int, int]): from category ids to class indices.
        spool (file): for the annotations until they are sorted; empty, read and written in binary.
    """

    def __init__(
        self, images: Iterable[ImageRecord], class_of_id: Dict[int, int], spool: IO[bytes]
    ):
        self._images = sorted(images)
        self._index_of = {image.id: i for i, image in enumerate(self._images)}
        self._class_of_id = class_of_id
        self._spool = spool
        self._image, self._size, self._id = array("q"), array("q"), array("q")
        self._area = array("d")
        self._class, self._flags, self._visible = array("i"), array("B"), array("i")
        self._encode = msgspec.msgpack.Encoder().encode
        self._pieces: Dict[str, array] = {}

    def add(self, annotations: List[Dict[str, Any]]) -> int:
        """Take more annotations.

        Args:
            annotations (list[dict]): of the given images and categories, with ``id``.

        Returns:
            int: how many of them have no mask that ``load_coco_json`` takes; those are left out.

        Raises:
            OverflowError, TypeError, ValueError: for a number or text that cannot be stored.
        """
        pieces, num_left_out = [], 0
        for annotation in annotations:
            found = to_object(annotation, self._class_of_id)
            if found is None:
                num_left_out += 1
                continue
            mask, area = found.get("segmentation"), annotation.get("area")
            flags = CROWD if found.get("iscrowd", 0) else 0
            if mask:
                flags |= HAS_MASK | (HAS_RLE if isinstance(mask, dict) else 0)
            try:
                pieces.append(self._encode(found))
            except OverflowError:  # a whole number of more than 64 bits
                pieces.append(self._encode(_as_fractions(found)))
            self._id.append(annotation["id"])
            self._area.append(area if type(area) in (int, float) else 0)
            self._image.append(self._index_of[annotation["image_id"]])
            self._class.append(found["category_id"])
            self._flags.append(flags)
            self._visible.append(sum(v > 0 for v in found.get("keypoints", ())[2::3]))
        self._size.extend(map(len, pieces))
        self._spool.write(b"".join(pieces))
        return num_left_out

    def file_names(self) -> List[str]:
        """Of all images, relative to the image folder."""
        return [image.file_name for image in self._images]

    def stream(self) -> Iterator[bytes]:
        """The pieces of the images, which :meth:`columns` then knows the sizes of.

        Raises:
            OverflowError, ValueError: as :meth:`add`.
        """
        ends = np.cumsum(_numbers(self._size, np.int64))
        starts = ends - _numbers(self._size, np.int64)
        ids, areas = _numbers(self._id, np.int64), _numbers(self._area, np.float64)
        order, first = self._order()
        sizes, checksums = array("q"), array("q")
        with _mapped(self._spool) as spool:
            for i, image in enumerate(self._images):
                mine = order[first[i] : first[i + 1]]
                objects = [spool[a:b] for a, b in zip(starts[mine].tolist(), ends[mine].tolist())]
                head = [
                    *(name_to_bytes(image.file_name), image.id, image.height, image.width),
                    *(ids[mine].tolist(), areas[mine].tolist()),
                ]
                # A list of 7 rather than of 6 (MessagePack's fixarray), whose last one is a list.
                piece = b"".join(
                    [b"\x97", self._encode(head)[1:], _list_head(len(objects)), *objects]
                )
                sizes.append(len(piece))
                checksums.append(zlib.crc32(piece))
                yield piece
        self._pieces = {"sizes": sizes, "checksums": checksums}

    def columns(self) -> Dict[str, np.ndarray]:
        """What is known of all records without reading them, by name; N images, M annotations.

        Returns:
            dict[str, ndarray]: ``starts`` (N + 1) of the pieces; their ``checksums`` (N);
            ``sizes`` (N, 2), height and width; ``first`` (N + 1), of the annotations of an image
            among all; ``classes`` (M) and ``flags`` (M); ``visible_keypoints`` (N); ``names``,
            the files' names, each ended by a zero.
        """
        order, first = self._order()
        visible = np.concatenate([[0], np.cumsum(_numbers(self._visible, np.int32)[order])])
        sizes = [[image.height, image.width] for image in self._images]
        names = b"".join(name_to_bytes(image.file_name) + b"\0" for image in self._images)
        return {
            "starts": np.concatenate([[0], np.cumsum(_numbers(self._pieces["sizes"], np.int64))]),
            "checksums": _numbers(self._pieces["checksums"], np.int64),
            "sizes": np.array(sizes, dtype=np.int32).reshape(-1, 2),
            "names": np.frombuffer(names, dtype=np.uint8),
            "first": first,
            "classes": _numbers(self._class, np.int32)[order],
            "flags": _numbers(self._flags, np.uint8)[order],
            "visible_keypoints": (visible[first[1:]] - visible[first[:-1]]).astype(np.int32),
        }

    def _order(self) -> Tuple[np.ndarray, np.ndarray]:
        """The annotations by image, those of one in the file's order, and where each begins."""
        image = _numbers(self._image, np.int64)
        counts = np.bincount(image, minlength=len(self._images))
        first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return np.argsort(image, kind="stable"), first


def _as_fractions(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _as_fractions(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_as_fractions(v) for v in value]
    return float(value) if type(value) is int and abs(value) >= 2**63 else value


def _numbers(values: array, dtype: Any) -> np.ndarray:
    return np.frombuffer(values, dtype=values.typecode).astype(dtype)


def _list_head(length: int) -> bytes:
    """https://github.com/msgpack/msgpack/blob/master/spec.md, the format "array 32"."""
    return b"\xdd" + length.to_bytes(4, "big")


def _mapped(spool: IO[bytes]) -> Any:
    spool.flush()
    if isinstance(spool, io.BytesIO):
        return spool.getbuffer()
    if not spool.tell():
        return memoryview(b"")
    return mmap.mmap(spool.fileno(), 0, access=mmap.ACCESS_READ)
