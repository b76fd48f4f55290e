"""Data sets: from the annotation file to the first batch, at the start of a training.

The annotation file is made from a seed, by default of the size of COCO's train2017: 118,000 images
and 826,000 polygons. Stock is Detectron2's `load_coco_json`, alone and followed by
`build_detection_train_loader`; ours is `DATASETS.COCO_JSON` with its checks, and our training
loader. A batch has records: no image is read. Each start is a forked process that has done its
imports, or with --processes several of them together. The records of both must be equal.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import zlib
from typing import Any, Callable, Dict, Iterable, List

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, build_detection_train_loader
from detectron2.data.datasets import load_coco_json, register_coco_instances

from rsb_d2.data import register_coco_json
from rsb_d2.data.loader import build_train_loader

from .harness import Prepared, positive, verdict
from .models import our_config

_CLASSES, _SHAPES, _CORNERS = 80, 3000, 22  # each annotation has one of the shapes
_LOAD = "stock, load_coco_json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=positive, default=118_000, help="(118000)")
    parser.add_argument("--objects", type=positive, default=7, help="in an image (7)")
    parser.add_argument("--boxes", action="store_true", help="no masks")
    parser.add_argument("--processes", type=positive, default=1, help="that start together (1)")
    parser.add_argument("--no-stock", action="store_true", help="only ours, to save memory")
    parser.add_argument("--folder", type=os.path.expanduser, help="for the data, removed again")


def contenders(args: argparse.Namespace) -> List[str]:
    return ["ours"] if args.no_stock else [_LOAD, "stock", "ours"]


_made: Dict[tuple, tempfile.TemporaryDirectory] = {}


def prepare(args: argparse.Namespace, name: str) -> Prepared:
    key = args.images, args.objects, args.boxes
    if key not in _made:
        _made[key] = tempfile.TemporaryDirectory(dir=args.folder)
        write_data(_made[key].name, args.images, args.images * args.objects, not args.boxes)
    folder = _made[key].name
    json_file, images = os.path.join(folder, "made.json"), os.path.join(folder, "images")
    cfg = our_config()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("made",), ()
    cfg.MODEL.MASK_ON = not args.boxes
    cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = 16, 0
    start = {
        _LOAD: lambda: load_coco_json(json_file, images, "made"),
        "stock": lambda: _start_stock(cfg, json_file, images),
        "ours": lambda: _start_ours(cfg, json_file, images),
    }[name]
    return Prepared(
        {"to the first batch": lambda: _in_processes(start, args.processes)},
        lambda: _result(lambda: checksum(start())) if not args.no_stock else 0,
    )


def _start_stock(cfg: CfgNode, json_file: str, images: str) -> Iterable[dict]:
    register_coco_instances("made", {}, json_file, images)
    next(iter(build_detection_train_loader(cfg, mapper=dict)))
    return ()


def _start_ours(cfg: CfgNode, json_file: str, images: str) -> Iterable[dict]:
    cfg.DATASETS.COCO_JSON = [["made", json_file, images]]
    register_coco_json(cfg)
    next(iter(build_train_loader(cfg, mapper=dict)))
    return DatasetCatalog.get("made")


def _in_processes(call: Callable[[], Any], number: int) -> None:
    """Run a function in forked processes, which also keeps their catalogs apart."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=call) for _ in range(number)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
            raise RuntimeError(f"a start failed with exit status {process.exitcode}")


def _result(call: Callable[[], Any]) -> Any:
    results = multiprocessing.get_context("fork").SimpleQueue()
    _in_processes(lambda: results.put(call()), 1)
    return results.get()


def check(args: argparse.Namespace, results: Dict[str, int]) -> str:
    if args.no_stock:
        return "not compared: no stock"
    text = f"checksums of all records, stock and ours: {results[_LOAD]} and {results['ours']}"
    return verdict(results[_LOAD] == results["ours"], text)


def checksum(records: Iterable[dict]) -> int:
    """Return one number for the contents of all records."""
    found = 0
    for record in records:
        found = zlib.crc32(json.dumps(record, sort_keys=True, default=str).encode(), found)
    return found


def write_data(folder: str, num_images: int, num_objects: int, with_masks: bool) -> None:
    """Write ``made.json`` in COCO's format and ``images/``, whose files are empty.

    Two thirds of the images have 640 x 480 pixels, the others 480 x 640. The objects of all images
    are in random order, as in COCO's own files.
    """
    rng = np.random.default_rng(0)
    shapes = [_make_shape(rng, with_masks) for _ in range(_SHAPES)]
    os.mkdir(os.path.join(folder, "images"))
    with open(os.path.join(folder, "made.json"), "w") as f:
        f.write('{"info": {}, "licenses": [], "images": [')
        for i in range(1, num_images + 1):
            name, (width, height) = f"{i:012d}.jpg", (640, 480) if i % 3 else (480, 640)
            open(os.path.join(folder, "images", name), "w").close()
            f.write(
                f'{", " if i > 1 else ""}{{"license": 1, "file_name": "{name}", "coco_url": '
                f'"http://images.cocodataset.org/train2017/{name}", "height": {height}, '
                f'"width": {width}, "date_captured": "2013-11-14 17:02:52", "id": {i}}}'
            )
        f.write('], "annotations": [')
        columns = (rng.integers(0, n, num_objects) for n in (_SHAPES, num_images, _CLASSES))
        for i, (shape, image, label) in enumerate(zip(*columns), start=1):
            f.write(
                f'{", " if i > 1 else ""}{{"segmentation": {shapes[shape]}, "image_id": '
                f'{image + 1}, "category_id": {label + 1}, "id": {i}}}'
            )
        classes = [{"id": i + 1, "name": f"class {i + 1}"} for i in range(_CLASSES)]
        f.write(f'], "categories": {json.dumps(classes)}}}')


def _make_shape(rng: np.random.Generator, with_masks: bool) -> str:
    """Return the JSON text from the polygon to the box of an object that fits in every image."""
    w, h = rng.uniform(8, 300, 2)
    x, y = rng.uniform(0, 479 - w), rng.uniform(0, 479 - h)
    angle = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
    polygon = np.stack([w * (1 + np.cos(angle)), h * (1 + np.sin(angle))], axis=1) / 2 + [x, y]
    masks = [polygon.round(2).ravel().tolist()] if with_masks else []
    box = [round(float(v), 2) for v in (x, y, w, h)]
    area = round(box[2] * box[3], 2)
    return f'{json.dumps(masks)}, "area": {area}, "iscrowd": 0, "bbox": {json.dumps(box)}'
