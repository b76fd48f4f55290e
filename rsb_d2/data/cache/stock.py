"""One COCO-format file as ``load_coco_json`` reads it, packed; nothing of it is checked."""

import logging
from array import array
from typing import IO, List, NamedTuple, Tuple

import numpy as np

from ...errors import UserError
from .annotation_file import AnnotationFile
from .checked import Messages
from .packing import ImageRecord, RecordPacker, name_to_bytes


class NotPlain(Exception):
    """Its text says what in a file Detectron2 itself must judge."""


class StockCocoJson(NamedTuple):
    """What ``load_coco_json`` puts into the metadata.

    Args:
        category_names (list[str]): in the order of their ids.
        category_ids (list[int]): ascending.
    """

    category_names: List[str]
    category_ids: List[int]


def read_coco_json(
    json_file: str, spool: IO[bytes]
) -> Tuple[StockCocoJson, Messages, RecordPacker]:
    """Read a COCO-format file.

    Args:
        json_file (str): annotation file.
        spool (file): as for :class:`RecordPacker`.

    Returns:
        StockCocoJson: its categories.
        list[tuple[int, str]]: what is to be said of it, with the logger's levels.
        RecordPacker: with all annotations.

    Raises:
        NotPlain: if ``load_coco_json`` might stop at the file, or read it otherwise.
    """
    try:
        return _read(AnnotationFile(json_file), spool)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as e:
        # UserError is one of them.
        reason = str(e) if isinstance(e, UserError) else f"{type(e).__name__}: {e}"
        raise NotPlain(reason) from None


def _read(content: AnnotationFile, spool: IO[bytes]) -> Tuple:
    names = {category["id"]: category["name"] for category in content.records("categories")}
    images = [
        ImageRecord(r["id"], r["file_name"], r["height"], r["width"])
        for chunk in content.chunks("images")
        for r in chunk
    ]
    for image in images:
        name_to_bytes(image.file_name)  # whether it can be packed
    ids = sorted(names)
    is_unique = len(ids) == content.count("categories")
    if not (ids and is_unique and len({image.id for image in images}) == len(images)):
        raise NotPlain("its categories or images have no ids of their own")
    packer = RecordPacker(images, {c: i for i, c in enumerate(ids)}, spool)
    annotation_ids, num_left_out = array("q"), 0
    for chunk in content.chunks("annotations"):
        if any(a.get("ignore", 0) != 0 or a.get("bbox") == [] for a in chunk):
            raise NotPlain("it has an annotation with 'ignore' or without a box")
        annotation_ids.extend(a["id"] for a in chunk)
        num_left_out += packer.add(chunk)
    if len(np.unique(np.frombuffer(annotation_ids, dtype=np.int64))) < len(annotation_ids):
        raise NotPlain("its annotation ids are not unique")
    messages = []
    if num_left_out:
        text = f"Filtered out {num_left_out} instances without valid segmentation."
        messages.append((logging.WARNING, text))
    return StockCocoJson([names[i] for i in ids], ids), messages, packer
