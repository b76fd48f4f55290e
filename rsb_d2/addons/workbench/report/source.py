"""The data set of a page: from the name in a config, or from an annotation file and a folder."""

import argparse
import array
import contextlib
import json
import logging
import mmap
import os
import re
from typing import TYPE_CHECKING, Any, Collection, Dict, Iterator, List, Sequence, Tuple

import hotcoco
import numpy as np

from ....data.coco_check import check_coco_json
from ....data.opening import is_image_folder
from ....data.predictions import read_dataset_name
from ....errors import UserError, printable
from ....extensions import TASKS
from ....files import absolute, path_manager

if TYPE_CHECKING:
    from detectron2.config import CfgNode

_logger = logging.getLogger("rsb_d2.data.coco_check")
# Loggers whose warnings go onto the page: registration, and Detectron2's reader.
_LOGGERS = ("rsb_d2.data", "detectron2.data.datasets.coco")
# A 'segmentation' with something in it.
_MASK = re.compile(rb'"segmentation"\s*:\s*(\[\s*[^\]\s]|\{\s*")')


class Source:
    """A COCO-format data set that has been checked.

    Args:
        name (str): its name on the page.
        coco (hotcoco.COCO): images, annotations and categories.
        json_file (str): the annotation file that training and evaluation read.
        image_root (str): image folder.
        warnings (sequence of str): warnings of registration.

    Attributes:
        images (list[dict]): ``id``, ``file_name``, ``height``, ``width``, sorted by id.
        class_of (dict[int, int]): index of the class of each category id, in the order of the ids.
        class_names (list[str]): by class.
        ids (ndarray): (M,) ids of the annotations, image by image.
        image (ndarray): (M,) index into ``images``.
        label (ndarray): (M,) index into ``class_names``.
        boxes (ndarray): (M, 4) as x, y, width, height in pixels.
        area (ndarray): (M,) in pixels.
        crowd (ndarray): (M,) of bool.
        has_mask (ndarray): (M,) of bool.
    """

    def __init__(
        self,
        name: str,
        coco: hotcoco.COCO,
        json_file: str = "",
        image_root: str = "",
        warnings: Sequence[str] = (),
    ):
        self.name, self.coco = name, coco
        self.json_file, self.image_root, self.warnings = json_file, image_root, list(warnings)
        images, categories = coco.imgs, coco.cats
        self.images: List[Dict[str, Any]] = [images[i] for i in sorted(images)]
        self.class_of: Dict[int, int] = {i: k for k, i in enumerate(sorted(categories))}
        self.class_names = [categories[i]["name"] for i in self.class_of]
        values = array.array("d")  # without the masks, which may be gigabytes
        for i in range(len(self.images)):
            for a in self.annotations(i):
                label = self.class_of[a["category_id"]]
                columns = a["id"], i, label, a.get("area", 0), a.get("iscrowd", 0), has_mask(a)
                values.extend((*columns, *a["bbox"]))
        columns = np.array(values).reshape(-1, 10).T
        self.ids, self.image, self.label = columns[:3].astype(np.int64)
        self.area, self.boxes = columns[3], columns[6:].T
        self.crowd, self.has_mask = columns[4:6].astype(bool)

    def annotations(self, image: int) -> List[Dict[str, Any]]:
        """Return the annotations of an image, given by its index, in COCO's format."""
        return self.coco.load_anns(self.coco.get_ann_ids(img_ids=[self.images[image]["id"]]))

    def without_images(self, ids: Collection[Any]) -> "Source":
        """Return the data set without the images of these ids, and a warning that says so."""
        annotations = [a for a in self.coco.anns.values() if a["image_id"] not in ids]
        content = {
            "images": [image for image in self.images if image["id"] not in ids],
            "annotations": annotations,
            "categories": list(self.coco.cats.values()),
        }
        number = len(self.images) - len(content["images"])
        note = f"{number} of {len(self.images)} images are left out, as in the evaluation."
        warnings = [*self.warnings, note]
        files = self.json_file, self.image_root
        return Source(self.name, hotcoco.COCO(content), *files, warnings)


def has_mask(annotation: Dict[str, Any]) -> bool:
    """Whether an annotation has polygons or an RLE."""
    return bool(annotation.get("segmentation"))


def open_files(json_file: str, image_root: str, *, with_masks: bool) -> Source:
    """Open an annotation file and its image folder that no config names.

    Args:
        json_file (str): COCO-format annotation file.
        image_root (str): image folder.
        with_masks (bool): whether to drop annotations without a usable mask, as the training of a
            mask model does.

    Raises:
        UserError: if the files cannot be used.
    """
    json_file, image_root = absolute(json_file), absolute(image_root)
    with _collect_warnings() as warnings:
        try:
            checked = check_coco_json(json_file, image_root, with_masks=with_masks)
        except UserError as e:
            raise UserError(f"{json_file}: {e}") from None
        for level, text in checked.messages:
            _logger.log(level, text)
    name = printable("/".join(json_file.split(os.sep)[-2:]))
    return _make_source(name, checked.json_file, image_root, warnings)


def open_registered(cfg: "CfgNode", name: str, *, with_masks: bool | None = None) -> Source:
    """Open a data set of ``DATASETS.COCO_JSON``, or one that Detectron2 or a script registered.

    Args:
        cfg (CfgNode): with this project's keys; not changed.
        name (str): registered name.
        with_masks (bool): replaces ``MODEL.MASK_ON`` unless it is None.

    Raises:
        UserError: if there is no such name, or its files cannot be used.
    """
    from detectron2.data import MetadataCatalog

    from ....data import register_coco_json
    from ....data.datasets import registered

    cfg = cfg.clone()
    cfg.defrost()
    if with_masks is not None:
        cfg.MODEL.MASK_ON = with_masks
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()  # the data set is not checked against the model
    with _collect_warnings() as warnings:
        register_coco_json(cfg)
        load = registered(name)
        try:
            load()
        except UserError:
            raise
        except OSError as e:
            raise UserError(f"data set {name} cannot be read: {e}") from None
    metadata = MetadataCatalog.get(name)
    json_file = metadata.get("json_file")
    if not (json_file and metadata.get("image_root")):
        raise UserError(f"data set {name} is not in COCO's format: it has no annotation file")
    return _make_source(name, json_file, metadata.image_root, warnings)


def _make_source(name: str, json_file: str, image_root: str, warnings: List[str]) -> Source:
    try:
        coco, names = _read(path_manager(json_file).get_local_path(json_file))
    except (OSError, ValueError) as e:
        raise UserError(f"data set {name}: {json_file}: {e}") from None
    source = Source(name, coco, json_file, image_root, list(dict.fromkeys(warnings)))
    for image in source.images:
        image["file_name"] = names.get(image["id"], image["file_name"])
    if source.crowd.all():
        raise UserError(
            f"{json_file}: there is no usable annotation, so there is nothing to show "
            "(crowds do not count); check the annotation file"
        )
    return source


def _read(path: str) -> Tuple[hotcoco.COCO, Dict[int, str]]:
    """Return an annotation file, and the names of images that hotcoco does not accept, by id.

    hotcoco 1.3 stops at names that are not UTF-8, in the file and of the file.
    """
    try:
        return hotcoco.COCO(path), {}
    except ValueError:
        with open(path, encoding="utf-8") as f:
            content = json.load(f)
    names = {image["id"]: image["file_name"] for image in content["images"]}
    for key, records in (("file_name", content["images"]), ("name", content["categories"])):
        for record in records:
            record[key] = printable(record[key])
    return hotcoco.COCO(content), names


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


# ---- command line ----


def open_dataset(
    args: argparse.Namespace,
    split: str,
    *,
    with_masks: bool | None = None,
    results_file: str = "",
) -> Tuple[Source, "CfgNode | None"]:
    """Open the data set that the command line names.

    Args:
        args (Namespace): with ``config_file``, ``dataset``, ``annotations``, ``images``, ``opts``.
        split (str): ``"TRAIN"`` or ``"TEST"``, whose first data set is the default.
        with_masks (bool): whether to drop annotations without a usable mask, provided that the
            file has masks at all; None for the config's ``MODEL.MASK_ON``.
        results_file (str): results of an evaluation, whose data set is then the default.

    Returns:
        tuple[Source, CfgNode]: the data set, and the config or None.

    Raises:
        UserError: if the arguments contradict each other, or the files cannot be used.
    """
    if bool(args.annotations) != bool(args.images):
        raise UserError("--annotations and --images go together: a file and its image folder")
    if args.annotations and args.dataset:
        raise UserError("--dataset and --annotations both name a data set; leave one out")
    if not (args.annotations or args.dataset or args.config_file):
        raise UserError(
            "no data set is named: write --annotations FILE --images FOLDER, "
            "or --config-file FILE and --dataset NAME"
        )
    cfg = _load_config(args.config_file, args.opts) if args.config_file or args.dataset else None
    if args.annotations:
        if not is_image_folder(args.images):
            raise UserError(f"--images: there is no folder {args.images}")
        with_masks = bool(with_masks) and _file_has_masks(args.annotations)
        return open_files(args.annotations, args.images, with_masks=with_masks), cfg
    name = _choose_dataset(args.dataset, cfg.DATASETS[split], split, results_file)
    if with_masks:
        from ....data.coco_json import coco_json_entries

        files = {entry[0]: entry[1] for entry in coco_json_entries(cfg.DATASETS.COCO_JSON)}
        with_masks = name not in files or _file_has_masks(files[name])
    return open_registered(cfg, name, with_masks=with_masks), cfg


def _load_config(config_file: str, opts: Sequence[str]) -> "CfgNode":
    from ....config.loading import load_config
    from ....registration import architecture_name

    cfg = load_config(config_file, list(opts))
    if architecture_name(cfg) in TASKS:
        raise UserError(
            f"{config_file} is the config of an image classifier, whose images have no boxes to "
            "show; name a detector's config (rsb-d2 train draws a classifier's images into its "
            "OUTPUT_DIR)"
        )
    return cfg


def _choose_dataset(given: str | None, names: Sequence[str], split: str, results_file: str) -> str:
    evaluated = read_dataset_name(results_file) if results_file else ""
    if given and evaluated and given != evaluated:
        raise UserError(
            f"--dataset {given}: {results_file} has the results of {evaluated}; name the results "
            f"of {given}, or write --annotations FILE --images FOLDER instead of --dataset"
        )
    if given or evaluated:
        return given or evaluated
    if not names:
        raise UserError(f"DATASETS.{split} is empty; write --dataset NAME")
    if results_file and len(names) > 1:
        raise UserError(
            f"DATASETS.{split} has {len(names)} data sets ({', '.join(names)}); write --dataset "
            f"with the one that {results_file} has the results of"
        )
    return names[0]


def _file_has_masks(json_file: str) -> bool:
    """Whether an annotation file has masks; False if it cannot be read, an error of later."""
    try:
        with open(path_manager(json_file).get_local_path(json_file), "rb") as f:
            with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _MASK.search(content) is not None
    except (OSError, ValueError):
        return False
