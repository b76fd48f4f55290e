"""Data sets: from the annotation file to the first batch, at the first start and at later ones.

The annotation file is made from a seed, by default of the size of COCO's train2017: 118,000 images
and 826,000 polygons. Stock is Detectron2's `load_coco_json`, alone and before
`build_detection_train_loader`; ours `DATASETS.COCO_JSON` with its check, and the training loader.
A batch is of records: no image is read. Each start is a process of its own; the seconds are counted
from behind the imports. First the records of both are compared.

What is private of a process's memory is what it alone has in memory (Private_Clean and
Private_Dirty of /proc/self/smaps_rollup), beyond what it had behind the imports.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from os.path import expanduser
from typing import Any, Dict, List

from rsb_d2.errors import UserError

from ..timing import summarise
from .made_data import make_annotation_file, make_image_files

_ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
# Seconds that processes which start together have for their imports.
_IMPORTS = 15

_COMMON = """
import json, sys, time
import rsb_d2
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, build_detection_train_loader
from detectron2.data.datasets import register_coco_instances
from benchmarks.data_sets.starts import checksum, private_memory
from benchmarks.profiling import peak_memory
from rsb_d2.data.loader import build_train_loader

json_file, image_root, cache, start_at = sys.argv[1:]
cfg = get_cfg()
rsb_d2.add_rsb_config(cfg)
cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, cfg.DATASETS.CACHE = ("made",), (), cache
cfg.MODEL.MASK_ON, cfg.MODEL.ROI_HEADS.NUM_CLASSES = MASKS, 80
cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = 16, 0
time.sleep(max(0, float(start_at) - time.time()))
before, start, cpu = private_memory(), time.perf_counter(), time.process_time()
{call}
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
memory, peak = private_memory() - before, peak_memory()
time.sleep(HOLD)
print(json.dumps([seconds, cpu, memory, peak, checksum(records) if CHECK else 0]))
"""
_LOAD = "stock, load_coco_json"
_CALLS = {
    _LOAD: """
from detectron2.data.datasets import load_coco_json
records = load_coco_json(json_file, image_root, "made_too")
register_coco_instances("made", {}, json_file, image_root)
""",
    "stock": """
register_coco_instances("made", {}, json_file, image_root)
batch = next(iter(build_detection_train_loader(cfg, mapper=dict)))
records = []
""",
    "ours": """
cfg.DATASETS.COCO_JSON = [["made", json_file, image_root]]
rsb_d2.data.register_coco_json(cfg)
loader = build_train_loader(cfg, mapper=dict)
batch = next(iter(loader))
records = DatasetCatalog.get("made")
""",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``tools/benchmark.py datasets``."""
    parser.add_argument("--images", type=int, default=118_000, help="how many (118000)")
    parser.add_argument("--objects", type=int, default=7, help="of an image, on average (7)")
    parser.add_argument("--boxes", action="store_true", help="no masks")
    parser.add_argument("--large", action="store_true", help="1,200,000 images, 8,000,000 boxes")
    parser.add_argument(
        "--processes", type=int, nargs="+", default=[2, 4], help="that start together (2 4)"
    )
    parser.add_argument("--no-stock", action="store_true", help="only ours, for want of memory")
    parser.add_argument(
        "--folder", type=expanduser, default="", help="for the data and the cache; emptied again"
    )


def run(args: argparse.Namespace) -> Dict[str, Any]:
    """Make the data, compare the records, and time the starts.

    Args:
        args (Namespace): of :func:`add_arguments`, with ``runs``.

    Returns:
        dict: as :mod:`benchmarks.report` describes it.

    Raises:
        UserError: if an option is out of its range.
    """
    num_images, num_objects, masks = args.images, args.images * args.objects, not args.boxes
    if args.large:
        num_images, num_objects, masks = 1_200_000, 8_000_000, False
    if min(num_images, num_objects, *args.processes) < 1:
        raise UserError("--images, --objects and --processes must be 1 or more")
    with tempfile.TemporaryDirectory(dir=args.folder or None) as folder:
        data = _Data(folder, num_images, num_objects, masks)
        return _measure(args, data)


class _Data:
    """The made data, a folder for the cache, and processes that read it.

    Args:
        folder (str): for all of it.
        num_images, num_objects (int): of the annotation file.
        masks (bool): whether objects have polygons.
    """

    def __init__(self, folder: str, num_images: int, num_objects: int, masks: bool):
        self.json_file, self.images = (os.path.join(folder, n) for n in ("made.json", "images"))
        self.cache = os.path.join(folder, "cache")
        self.masks = masks
        self.what = f"{num_images:,} images, {num_objects:,} {'polygons' if masks else 'boxes'}"
        make_annotation_file(self.json_file, num_images, num_objects, masks=masks)
        make_image_files(self.images, num_images)
        self.megabytes = round(os.path.getsize(self.json_file) / 1e6)

    def start(self, name: str, count: int = 1, *, check: bool = False) -> List[list]:
        """Start processes together; return seconds, CPU seconds, private memory, peak, checksum."""
        code = _COMMON.replace("{call}", _CALLS[name]).replace("MASKS", str(self.masks))
        # All stay until the last one has measured, as pages are shared by those that are there.
        code = code.replace("HOLD", str(0 if count == 1 else 5)).replace("CHECK", str(check))
        start_at = time.time() + (0 if count == 1 else _IMPORTS + count)
        paths = filter(None, [_ROOT, os.environ.get("PYTHONPATH", "")])
        runs = [
            subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", code]
                + [self.json_file, self.images, self.cache, str(start_at)],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(count)
        ]
        outputs = [process.communicate() for process in runs]
        if any(process.returncode for process in runs):
            raise RuntimeError(f"{name} failed:\n{outputs[0][1]}")
        return [json.loads(out.splitlines()[-1]) for out, _ in outputs]

    def forget(self) -> None:
        """Empty the cache."""
        shutil.rmtree(self.cache, ignore_errors=True)


def _measure(args: argparse.Namespace, data: _Data) -> Dict[str, Any]:
    report = {
        "title": f"Data sets: {data.what}, {data.megabytes} MB",
        "settings": {"runs": args.runs},
        "notes": [],
    }
    report["comparison"] = {"passed": True, "text": "not compared: no stock"}
    names = ["ours"] if args.no_stock else [_LOAD, "ours", "stock"]
    found = {name: [] for name in [*names, "later"]}
    for number in range(args.runs):
        data.forget()
        for name in names:
            found[name] += data.start(name, check=number == 0 and not args.no_stock)
            if name == "ours":
                found["later"] += data.start(name)
        if number == 0 and not args.no_stock:
            stock, ours = (found[name][0][-1] for name in (_LOAD, "ours"))
            text = f"checksums of all records, stock and ours: {stock} and {ours}"
            report["comparison"] = {"passed": stock == ours, "text": text}
            if stock != ours:
                return report
    report["rows"] = _rows(found)
    for count in args.processes:
        report["notes"] += _processes(data, count)
    return report


def _rows(found: Dict[str, List[list]]) -> List[Dict[str, Any]]:
    def column(name: str, index: int, scale: float = 1) -> Dict[str, Any]:
        return summarise([values[index] / scale for values in found[name]])

    units = [("seconds", 0, "s", 1), ("processor", 1, "s", 1), ("peak memory", 3, "MiB", 2**20)]
    rows = []
    for start, ours in (("first", "ours"), ("later", "later")):
        for what, index, unit, scale in units:
            stock = [name for name in found if name not in ("ours", "later")]
            columns = {name: column(name, index, scale) for name in stock}
            columns["ours"] = column(ours, index, scale)
            rows.append({"what": f"{start} start, {what}", "unit": unit, **columns})
    return rows


def _processes(data: _Data, count: int) -> List[str]:
    data.forget()
    lines = []
    for start in ("first", "later"):
        seconds, _, private, *_ = zip(*data.start("ours", count))
        memory = ", ".join(f"{value / 2**20:.0f}" for value in private)
        lines.append(
            f"{count} processes, {start} start: {max(seconds):.2f} s to the last first batch; "
            f"private memory of each {memory} MiB"
        )
    return lines


def private_memory() -> int:
    """What this process alone has in memory, in bytes."""
    with open("/proc/self/smaps_rollup") as f:
        kilobytes = [int(line.split()[1]) for line in f if line.startswith("Private_")]
    return sum(kilobytes) * 1024


def checksum(records: Any) -> int:
    """One number for all records, whatever makes them."""
    found = 0
    for record in records:
        text = json.dumps(record, sort_keys=True, default=str)
        found = zlib.crc32(text.encode(), found)
    return found
