"""Prediction of a folder of images: tools/predict.py's pipeline beside the model alone.

The model alone has its batches in memory, read and resized. The pipeline reads JPEG files, runs
the same batches and writes results, and with pictures draws and writes those as well. The model is
Faster R-CNN with ResNet-50 and FPN, optimized, with seeded weights. First the results are compared.

The ratio is the share of the model's images per second that the pipeline reaches. Seconds of the
processor are those of all processes together; where other programs use the cores they are what to
compare, as the wall clock of a machine whose cores are all busy is theirs.
"""

import argparse
import contextlib
import io
import json
import os
import tempfile
from typing import Any, Callable, Dict, List

import torch
from detectron2.modeling import build_model
from PIL import Image

from rsb_d2.addons.accelerate import optimize_for_inference
from rsb_d2.addons.predict.files import find_images
from rsb_d2.addons.predict.pipeline import (
    ImageBatches,
    Options,
    load,
    pending_chunks,
    predict_files,
)
from rsb_d2.data.class_names import ClassNames
from rsb_d2.errors import UserError
from rsb_d2.predictor import Predictor

from .. import arguments
from ..stock import make_images, our_config, seed_weights
from ..timing import measure, summarise

_MODEL, _RESULTS, _PICTURES = "the model alone", "results", "results and pictures"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``tools/benchmark.py prediction``."""
    arguments.add_device_argument(parser)
    arguments.add_image_arguments(parser, "480x640")
    arguments.add_dtype_argument(parser)
    parser.add_argument("--images", type=int, default=32, help="how many (32)")
    parser.add_argument("--detections", type=int, default=15, help="of an image (15)")
    parser.add_argument("--test-size", type=int, default=800, help="shorter side, resized (800)")
    parser.add_argument("--workers", type=int, help="as of tools/predict.py (by the cores)")


def run(args: argparse.Namespace) -> Dict[str, Any]:
    """Make the images, compare the results and time both.

    Args:
        args (Namespace): of :func:`add_arguments`, with ``runs``.

    Returns:
        dict: as :mod:`benchmarks.report` describes it.

    Raises:
        UserError: if an option is out of its range.
    """
    device, size = arguments.find_device(args.device), arguments.find_size(args.image_size)
    arguments.check_at_least_one(args, "batch", "images", "detections", "test_size")
    options = {
        name: Options(args.batch, args.workers, pictures)
        for name, pictures in ((_RESULTS, False), (_PICTURES, True))
    }
    predictor = _make_predictor(args, device)
    report = {
        "title": "Prediction of a folder of images, in seconds for all of them",
        "settings": {
            "images": args.images,
            "image size": args.image_size,
            "test size": args.test_size,
            "batch": args.batch,
            "workers": "by the cores" if args.workers is None else args.workers,
            "dtype": args.dtype,
            "device": str(device),
            "runs": args.runs,
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        _write_images(os.path.join(folder, "images"), size, args.images)
        images = find_images([os.path.join(folder, "images")])
        batches = _read_batches(predictor, images, args.batch)
        calls: Dict[str, Callable[[], Any]] = {
            _MODEL: lambda: [predictor(batch) for batch in batches.values()]
        }
        for name, given in options.items():
            output = os.path.join(folder, name)
            calls[name] = lambda given=given, output=output: _predict(
                predictor, images, output, given
            )
        with torch.no_grad():
            report["comparison"] = _compare(predictor, batches, calls[_PICTURES], folder)
            if report["comparison"]["passed"]:
                counted = {name: _Counted(call) for name, call in calls.items()}
                times = measure(counted, args.runs, warmup=1, device=device)
                seconds = {n: summarise(c.seconds[-args.runs :]) for n, c in counted.items()}
                report["rows"] = [
                    {"what": f"{args.images} images", **times},
                    {"what": "of the processor", **seconds},
                ]
                report["notes"] = _rates(times, args.images)
    return report


class _Counted:
    """A call, and the seconds of the processor that each took with all of its processes."""

    def __init__(self, call: Callable[[], Any]):
        self._call = call
        self.seconds: List[float] = []

    def __call__(self) -> None:
        before = sum(os.times()[:4])
        self._call()
        self.seconds.append(sum(os.times()[:4]) - before)


def _make_predictor(args: argparse.Namespace, device: torch.device) -> Predictor:
    cfg = our_config(device)
    cfg.INPUT.MIN_SIZE_TEST = args.test_size
    cfg.TEST.DETECTIONS_PER_IMAGE = args.detections
    model = build_model(cfg).eval()
    seed_weights(model)
    model = optimize_for_inference(model, arguments.DTYPES[args.dtype])
    numbers = range(cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    classes = ClassNames(tuple(f"class {i}" for i in numbers), tuple(i + 1 for i in numbers))
    return Predictor(cfg, model, classes)


def _write_images(folder: str, size: tuple, number: int) -> None:
    os.makedirs(folder)
    for index, entry in enumerate(make_images(size, number)):
        pixels = entry["image"].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(os.path.join(folder, f"{index:06d}.jpg"), quality=92)


def _read_batches(
    predictor: Predictor, images: List[tuple], batch_size: int
) -> Dict[tuple, List[dict]]:
    """The batches that the pipeline makes, by the indices of their images."""
    done = bytes(len(images))
    chunks = pending_chunks(done, batch_size)
    paths = [path for path, _ in images]
    batches = ImageBatches(paths, chunks, done, predictor.preparation, batch_size, False)
    return {
        tuple(loaded.index for loaded in batch): [loaded.prepared for loaded in batch]
        for batch in load(batches, 0)
    }


def _predict(predictor: Predictor, images: List[tuple], output: str, options: Options) -> None:
    with contextlib.redirect_stderr(io.StringIO()):
        predict_files(predictor, images, output, options)


def _compare(
    predictor: Predictor, batches: Dict[tuple, List[dict]], call: Callable, folder: str
) -> Dict[str, Any]:
    expected: Dict[int, List[dict]] = {}
    for indices, batch in batches.items():
        for index, instances in zip(indices, predictor(batch)):
            expected[index] = predictor.to_coco(instances, index + 1)
    call()
    with open(os.path.join(folder, _PICTURES, "results.json")) as f:
        found = json.load(f)
    flat = [result for index in sorted(expected) for result in expected[index]]
    if not flat:
        raise UserError("nothing is detected; write another --image-size or --test-size")
    return {
        "passed": found == flat,
        "text": f"{len(flat)} detections of the pipeline and of the model alone, to the last bit",
    }


def _rates(times: Dict[str, Dict[str, Any]], number: int) -> List[str]:
    rates = (f"{name} {number / t['median']:.2f}" for name, t in times.items())
    return ["images per second: " + ", ".join(rates)]
