"""One COCO-format file, checked by the rules of ``coco_check.py`` and packed, in one reading."""

import hashlib
import itertools
import json
import logging
import os
import tempfile
from array import array
from collections import Counter
from typing import IO, Any, Callable, Dict, Iterator, List, NamedTuple, Tuple

import numpy as np
from iopath.common.file_io import get_cache_dir

from ...errors import UserError
from ..coco_check import check_annotations, check_categories, check_image_files, check_images
from ..coco_correct import (
    Annotations,
    boxes_beyond_image,
    correct_masks,
    describe_beyond,
    describe_dropped,
    drop_bad_boxes,
    fill_in,
    stop_without_masks,
)
from .annotation_file import CHUNK, AnnotationFile
from .packing import ImageRecord, RecordPacker

# Of a logger's level and a text.
Messages = List[Tuple[int, str]]


class CheckedCocoJson(NamedTuple):
    """What the check of a COCO-format file found.

    Args:
        json_file (str): the file to read: the user's, or a corrected copy of it.
        category_names (List[str]): in the order of their ids.
        category_ids (List[int]): ascending.
        num_objects (int): the annotations that can be learned or found: all but crowds.
        num_rle_objects (int): those of them whose mask is an RLE, not polygons.
        keypoints (List[Any]): what each category has as ``keypoints``, or None.
        skeletons (List[Any]): what each category has as ``skeleton``, or None.
    """

    json_file: str
    category_names: List[str]
    category_ids: List[int]
    num_objects: int
    num_rle_objects: int
    keypoints: List[Any]
    skeletons: List[Any]


def check_coco_json(
    json_file: str, image_root: str, *, with_masks: bool, spool: IO[bytes]
) -> Tuple[CheckedCocoJson, Messages, RecordPacker]:
    """Check a COCO-format file and its image folder; write a corrected copy if one is needed.

    Args:
        json_file (str): annotation file.
        image_root (str): image folder.
        with_masks (bool): whether an annotation without a usable mask is to be dropped. If not,
            it keeps its box and loses the mask.
        spool (file): as for :class:`RecordPacker`.

    Returns:
        CheckedCocoJson: what to read, and what is in it.
        list[tuple[int, str]]: what is to be said of it, with the logger's levels.
        RecordPacker: with all annotations.

    Raises:
        UserError: if the files cannot be used; the message does not name the annotation file.
    """
    content = AnnotationFile(json_file)
    categories = content.records("categories")
    for key in ("images", "annotations"):
        content.count(key)
    check_categories(categories)
    images = _read_images(content)
    check_image_files([image.file_name for image in images], image_root)

    ids = sorted(category["id"] for category in categories)
    packer = RecordPacker(images, {c: i for i, c in enumerate(ids)}, spool)
    categories = sorted(categories, key=lambda category: category["id"])
    check = _AnnotationCheck(content, json_file, images, categories, with_masks)
    check.run(packer.add)
    checked = CheckedCocoJson(
        json_file=check.copy.path or json_file,
        category_names=[category["name"] for category in categories],
        category_ids=ids,
        num_objects=check.num_objects,
        num_rle_objects=check.num_rle_objects,
        keypoints=[category.get("keypoints") for category in categories],
        skeletons=[category.get("skeleton") for category in categories],
    )
    return checked, check.messages, packer


def _read_images(content: AnnotationFile) -> List[ImageRecord]:
    images = []

    def check(records: List[Dict[str, Any]]) -> None:
        check_images(records)
        images.extend(
            ImageRecord(r["id"], r["file_name"], r["height"], r["width"]) for r in records
        )

    with_all = _Retry(content, "images")
    if not content.count("images"):
        check_images([])
    for chunk in content.chunks("images"):
        with_all.on_error(check, chunk)
    if len({image.id for image in images}) < len(images):
        check_images(content.records("images"))
    return images


class _Retry:
    """Turns the error of a chunk into that of all records, with their number and their ids."""

    def __init__(self, content: AnnotationFile, key: str):
        self._content = content
        self._key = key

    def on_error(self, check: Callable, chunk: List[Dict[str, Any]], *args) -> Any:
        try:
            return check(chunk, *args)
        except UserError:
            check(self._content.records(self._key), *args)
            raise


class _AnnotationCheck:
    """Goes through the annotations of a file once, and hands on those that are kept."""

    def __init__(
        self,
        content: AnnotationFile,
        json_file: str,
        images: List[ImageRecord],
        categories: List[Dict[str, Any]],
        with_masks: bool,
    ):
        self._content = content
        self._json_file = json_file
        self._sizes = {image.id: [image.height, image.width] for image in images}
        self._category_ids = {category["id"] for category in categories}
        self._num_keypoints = {c["id"]: _num_keypoints(c) for c in categories}
        self._with_masks = with_masks
        self._dropped: Dict[str, List[int]] = {}
        self._without_mask: List[int] = []
        self._beyond: List[int] = []
        self._changed: Counter = Counter()
        self._new_ids = self._count_new_ids()
        self.num_objects = self.num_rle_objects = 0
        self.messages: Messages = []
        self.copy = _CorrectedCopy(content, json_file)

    def run(self, use: Callable[[Annotations], Any]) -> None:
        """Check all; each list of annotations that are kept goes to ``use``."""
        ids, num_kept = array("q"), 0
        with_all = _Retry(self._content, "annotations")
        with self.copy:
            for chunk in self._content.chunks("annotations"):
                with_all.on_error(check_annotations, chunk, self._category_ids)
                ids.extend(a["id"] for a in chunk)
                kept, is_changed = self._correct(chunk)
                self.copy.add(kept, is_changed)
                num_kept += len(kept)
                use(kept)
            if len(np.unique(np.frombuffer(ids, dtype=np.int64))) < len(ids):
                check_annotations(self._content.records("annotations"), self._category_ids)
            if self._without_mask and not num_kept:
                stop_without_masks(self._without_mask)
        self._tell(len(ids), num_kept)

    def _correct(self, chunk: Annotations) -> Tuple[Annotations, bool]:
        kept, dropped = drop_bad_boxes(chunk, self._sizes)
        kept, without_mask, changed = correct_masks(kept, self._sizes, self._with_masks)
        changed.update(fill_in(kept, self._new_ids, self._num_keypoints))
        for reason, ids in dropped.items():
            self._dropped.setdefault(reason, []).extend(ids)
        self._without_mask += without_mask
        self._changed.update(changed)
        self._beyond += boxes_beyond_image(kept, self._sizes)
        objects = [a for a in kept if not a["iscrowd"]]
        self.num_objects += len(objects)
        self.num_rle_objects += sum(isinstance(a.get("segmentation"), dict) for a in objects)
        return kept, bool(changed) or len(kept) < len(chunk)

    def _tell(self, num_seen: int, num_kept: int) -> None:
        self._dropped["without a mask that can be used"] = self._without_mask
        if num_kept < num_seen:
            text = f"{self._json_file}: {describe_dropped(self._dropped, num_seen)}"
            self.messages.append((logging.WARNING, text))
        if self._beyond:
            text = f"{self._json_file}: {describe_beyond(self._beyond, num_kept)}"
            self.messages.append((logging.WARNING, text))
        if self.copy.path:
            counts = ", ".join(f"{count} {what}" for what, count in self._changed.items())
            text = (
                f"{self._json_file}: training and evaluation read {self.copy.path}: "
                f"{counts or 'the rest'}"
            )
            self.messages.append((logging.INFO, text))

    def _count_new_ids(self) -> Iterator[int]:
        ids = (a.get("id") for chunk in self._content.chunks("annotations") for a in chunk)
        largest = max((i for i in ids if type(i) is int), default=0)
        yield from itertools.count(max(largest, 0) + 1)


def _num_keypoints(category: Dict[str, Any]) -> int | None:
    """How many keypoints an object of a category has; None if the category does not name them."""
    names = category.get("keypoints")
    return len(names) if isinstance(names, list) and names else None


class _CorrectedCopy:
    """A COCO-format file with the annotations that are kept, if that is not the file itself.

    It goes to the cache folder, under a name made from its content.

    Attributes:
        path (str): of the copy when all is written; "" if none was needed.
    """

    def __init__(self, content: AnnotationFile, json_file: str):
        self._content = content
        self._stem = os.path.splitext(os.path.basename(json_file))[0]
        self._folder = os.path.join(get_cache_dir(), "rsb_d2", "coco_json")
        self._file: IO[bytes] | None = None
        self._digest = hashlib.sha256()
        self._num_chunks = 0
        self._is_empty = True
        self.path = ""

    def __enter__(self) -> "_CorrectedCopy":
        return self

    def add(self, kept: Annotations, is_changed: bool) -> None:
        """Take the annotations of the next chunk of the file, and whether they are all as there."""
        start = self._num_chunks * CHUNK
        self._num_chunks += 1
        if self._file is None:
            if not is_changed:
                return
            self._begin()
            self._write_annotations(self._content.texts("annotations", 0, start))
        if is_changed:
            self._write_annotations(map(self._content.to_json, kept))
        else:
            self._write_annotations(self._content.texts("annotations", start, start + CHUNK))

    def __exit__(self, kind: Any, *_) -> None:
        if self._file is None:
            return
        try:
            if kind is None:
                self._write(b"]}")
                self._file.flush()
                name = f"{self._stem[:40]}-{self._digest.hexdigest()[:16]}.json"
                path = os.path.join(self._folder, name)
                os.replace(self._file.name, path)
                self.path = path
        except OSError as e:
            raise self._error(e) from None
        finally:
            self._file.close()
            if os.path.lexists(self._file.name):
                os.remove(self._file.name)

    def _begin(self) -> None:
        try:
            os.makedirs(self._folder, exist_ok=True)
            # Written aside and then renamed, since another process may write or read the same one.
            self._file = tempfile.NamedTemporaryFile(dir=self._folder, delete=False)
            os.chmod(self._file.name, 0o666 & ~_umask())
        except OSError as e:
            raise self._error(e) from None
        self._write(b"{")
        for key in self._content.keys():
            if key != "annotations":
                self._write(json.dumps(key).encode() + b": " + self._content.text(key) + b", ")
        self._write(b'"annotations": [')

    def _write_annotations(self, texts: Iterator[bytes]) -> None:
        text = b", ".join(texts)
        if text:
            self._write(text if self._is_empty else b", " + text)
            self._is_empty = False

    def _write(self, text: bytes) -> None:
        self._digest.update(text)
        try:
            self._file.write(text)
        except OSError as e:
            raise self._error(e) from None

    def _error(self, error: OSError) -> UserError:
        return UserError(
            f"needs a corrected copy, which cannot be written to {self._folder} "
            f"({error.strerror}); make room there, or name another folder in the environment "
            "variable FVCORE_CACHE"
        )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
