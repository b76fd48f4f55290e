"""The data set that a page is about: from a config's name, or from a file and a folder."""

import contextlib
import json
import logging
import os
from collections.abc import Sequence
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple

import numpy as np
import pycocotools.mask as mask_util
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager

from ....config import add_rsb_config
from ....data import register_coco_json
from ....data.cache.annotation_file import AnnotationFile
from ....data.cache.coco_view import CocoAnnotations, CocoImages
from ....data.cache.records import PackedRecords
from ....data.catalog import registered
from ....data.coco_json import absolute
from ....errors import UserError, printable

# Whose warnings go onto the page: the check of DATASETS.COCO_JSON, and Detectron2's own reader.
_LOGGERS = ("rsb_d2.data", "detectron2.data.datasets.coco")


class Source(NamedTuple):
    """A COCO-format data set that was checked.

    Args:
        name (str): what to call it on the page.
        json_file (str): the annotation file that training and evaluation read.
        image_root (str): image folder.
        images (sequence of dict): ``id``, ``file_name``, ``height``, ``width``, sorted by id.
        annotations (sequence of dict): of COCO's format. Those of a large file are not kept in
            memory; each look at them makes them again.
        category_ids (list[int]): in the order of the classes.
        class_names (list[str]): in the same order.
        warnings (list[str]): what registration warned of.
    """

    name: str
    json_file: str
    image_root: str
    images: Sequence
    annotations: Sequence
    category_ids: List[int]
    class_names: List[str]
    warnings: List[str]


def open_files(json_file: str, image_root: str, *, with_masks: bool) -> Source:
    """Open an annotation file and its image folder that no config names.

    Args:
        json_file (str): COCO-format annotation file.
        image_root (str): image folder.
        with_masks (bool): whether an annotation without a usable mask is dropped, as in the
            training of a mask model.

    Returns:
        Source

    Raises:
        UserError: if they cannot be used.
    """
    cfg = get_cfg()
    add_rsb_config(cfg)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
    # Named by their paths, which are no other data set's.
    paths = [absolute(json_file), absolute(image_root)]
    cfg.DATASETS.COCO_JSON = [["|".join(paths), *paths]]
    short = printable("/".join(paths[0].split(os.sep)[-2:]))
    try:
        return open_registered(cfg, "|".join(paths), with_masks=with_masks)._replace(name=short)
    except UserError as e:
        raise UserError(str(e).replace(f"data set {'|'.join(paths)}: ", "")) from None


def open_registered(cfg: CfgNode, name: str, *, with_masks: bool | None = None) -> Source:
    """Open a data set of ``DATASETS.COCO_JSON``, or one that Detectron2 or a script registered.

    Args:
        cfg (CfgNode): with this project's keys; not changed.
        name (str): registered name.
        with_masks (bool): stands in for ``MODEL.MASK_ON`` if it is not None.

    Returns:
        Source

    Raises:
        UserError: if there is no such name, or its files cannot be used.
    """
    cfg = cfg.clone()
    cfg.defrost()
    if with_masks is not None:
        cfg.MODEL.MASK_ON = with_masks
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()  # not against the model: that is another question
    with _collect_warnings() as warnings:
        register_coco_json(cfg)
        load = registered(name)
        try:
            records = load()
        except UserError:
            raise
        except OSError as e:
            raise UserError(f"data set {name} cannot be read: {e}") from None
    metadata = MetadataCatalog.get(name)
    if not (metadata.get("json_file") and metadata.get("image_root")):
        raise UserError(f"data set {name} is not in COCO's format: it has no annotation file")
    if isinstance(records, PackedRecords):
        ids = records.header["checked"]["category_ids"]
        names = records.header["checked"]["category_names"]
        images, annotations = CocoImages(records), CocoAnnotations(records, ids)
    else:
        content = _read(metadata.json_file)
        categories = sorted(content["categories"], key=lambda c: c["id"])
        ids, names = [c["id"] for c in categories], [c["name"] for c in categories]
        images = sorted(content["images"], key=lambda i: i["id"])
        annotations = content.get("annotations", [])
    source = Source(
        name=name,
        json_file=metadata.json_file,
        image_root=metadata.image_root,
        images=images,
        annotations=annotations,
        category_ids=ids,
        class_names=names,
        warnings=list(dict.fromkeys(warnings)),
    )
    if not any(not a.get("iscrowd", 0) for a in source.annotations):
        raise UserError(
            f"{source.json_file}: there is no usable annotation, so there is nothing to show "
            "(crowds do not count); check the annotation file"
        )
    return source


def annotations_of(source: Source, images: Iterable[int]) -> Dict[int, List[Dict[str, Any]]]:
    """Return the annotations of some images.

    Args:
        source (Source): the data set.
        images (iterable of int): indices into ``Source.images``.

    Returns:
        dict[int, list[dict]]: by index.
    """
    if isinstance(source.annotations, CocoAnnotations):
        return {i: source.annotations.of_image(i) for i in images}
    index_of_id = {source.images[i]["id"]: i for i in images}
    found = {i: [] for i in index_of_id.values()}
    for annotation in source.annotations:
        if annotation["image_id"] in index_of_id:
            found[index_of_id[annotation["image_id"]]].append(annotation)
    return found


def count_masks(json_file: str) -> int:
    """Return how many annotations of a file have something in 'segmentation'.

    Args:
        json_file (str): annotation file; 0 for one that cannot be read, which the check names.
    """
    try:
        chunks = AnnotationFile(json_file).chunks("annotations")
        return sum(bool(a.get("segmentation")) for chunk in chunks for a in chunk)
    except (OSError, ValueError, AttributeError, TypeError):
        return 0


def to_rle(segmentation: Any, height: int, width: int) -> Dict[str, Any]:
    """Return a mask of COCO's format, polygons or any RLE, as a compressed RLE."""
    if isinstance(segmentation, list):
        return mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return mask_util.frPyObjects(segmentation, height, width)
    return segmentation


def xywh(records: List[Dict[str, Any]]) -> np.ndarray:
    """Return the boxes of annotations or results: (N, 4) as x, y, width, height in pixels."""
    return np.array([r["bbox"] for r in records], dtype=np.float64).reshape(-1, 4)


def _read(json_file: str) -> Dict[str, Any]:
    with PathManager.open(json_file, "rb") as f:
        return json.loads(f.read().decode("utf-8"))


@contextlib.contextmanager
def _collect_warnings() -> Iterator[List[str]]:
    messages: List[str] = []
    handler = logging.Handler(level=logging.WARNING)
    handler.emit = lambda record: messages.append(" ".join(record.getMessage().split()))
    for name in _LOGGERS:
        logging.getLogger(name).addHandler(handler)
    try:
        yield messages
    finally:
        for name in _LOGGERS:
            logging.getLogger(name).removeHandler(handler)
