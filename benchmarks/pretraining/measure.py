"""What ``tools/benchmark.py pretraining`` compares and times."""

import argparse
import logging
import os
import tempfile
import time
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator

from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from rsb_d2.errors import UserError
from rsb_d2.pretraining.data import register_image_folders

from .. import arguments
from ..profiling import operator_table, peak_memory_alone
from ..stock import make_images
from ..timing import measure, summarise
from .contenders import (
    OURS,
    TIMM,
    Step,
    make_config,
    our_batches,
    timm_batches,
)

# Relative.
LOSS_TOLERANCE, LOSS_TOLERANCE_LOW = 1e-4, 0.03  # the second for TF32, too

_CLASSES, _FILES = 2, 64
_FILE_SIZE = (375, 500)  # height and width of many of ImageNet's images
_LOADED_IMAGES = 512
_DATASET = "rsb_benchmark_pretraining"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``tools/benchmark.py pretraining``."""
    arguments.add_device_argument(parser)
    arguments.add_profile_argument(parser)
    parser.add_argument("--procedure", default="a3", choices=["a1", "a2", "a3"], help="(a3)")
    parser.add_argument("--model", default="resnet50", help="of timm (resnet50)")
    parser.add_argument("--train-size", type=int, default=0, help="pixels (the procedure's)")
    parser.add_argument("--batch", type=int, default=64, help="images at a time (64)")
    parser.add_argument(
        "--dtype", default="float32", choices=arguments.DTYPES, help="of both (float32)"
    )
    parser.add_argument("--tf32", action="store_true", help="both with TF32 for float32 on a GPU")
    parser.add_argument("--compile", action="store_true", help="both with torch.compile")
    parser.add_argument("--nchw", action="store_true", help="both without channels-last")
    parser.add_argument(
        "--peak-tflops",
        type=float,
        default=0.0,
        help="of the device in --dtype: also say the share of it",
    )
    parser.add_argument(
        "--loader-workers",
        type=int,
        default=-1,
        metavar="N",
        help="also measure the loading of 500 x 375 JPEG files, by N processes",
    )


def run(args: argparse.Namespace) -> Dict[str, Any]:
    """Compare and time a step of both, and their loaders.

    Args:
        args (Namespace): of :func:`add_arguments`, with ``runs``.

    Returns:
        dict: as :mod:`benchmarks.report` describes it.

    Raises:
        UserError: if an option is out of its range.
    """
    device = arguments.find_device(args.device)
    arguments.check_at_least_one(args, "batch")
    if args.batch % 2:
        raise UserError(f"--batch is {args.batch}; images are mixed in pairs, so write an even one")
    cfg = make_config(args)
    report = {
        "title": f"Pretraining of {args.model} by {args.procedure.upper()}",
        "settings": {
            "train size": cfg.INPUT.CLASSIFIER.TRAIN_SIZE,
            "batch": args.batch,
            "dtype": args.dtype,
            "TF32": args.tf32,
            "channels-last": not args.nchw,
            "compiled": args.compile,
            "device": str(device),
            "runs": args.runs,
        },
    }
    steps = {name: Step(args, name) for name in (TIMM, OURS)}
    report["comparison"] = _compare(steps, args.dtype != "float32" or args.tf32)
    if not report["comparison"]["passed"]:
        return report
    seconds = measure(steps, args.runs, warmup=2 if args.runs > 1 else 1, device=device)
    report["rows"] = [{"what": f"a step of {args.batch} images", **seconds}]
    report["notes"] = [
        f"{name}: {args.batch / seconds[name]['median']:.1f} images per second of a step"
        for name in steps
    ]
    if args.peak_tflops:
        report["notes"] += _shares(args, steps, seconds)
    if args.profile:
        report["profiles"] = {name: operator_table(step, device) for name, step in steps.items()}
    names = list(steps)
    del steps
    report["memory"] = {name: peak_memory_alone(Step, args, name, device=device) for name in names}
    if args.loader_workers >= 0:
        row = _measure_loaders(args)
        report["rows"].append(row)
        report["notes"] += [
            f"{name}: {args.batch / row[name]['median']:.1f} images per second of the loader, "
            f"{args.loader_workers} workers"
            for name in names
        ]
    return report


def _compare(steps: Dict[str, Step], is_low: bool) -> Dict[str, Any]:
    losses = {name: step.first_loss() for name, step in steps.items()}
    tolerance = LOSS_TOLERANCE_LOW if is_low else LOSS_TOLERANCE
    difference = abs(losses[OURS] - losses[TIMM]) / abs(losses[TIMM])
    return {
        "passed": bool(difference <= tolerance),
        "text": (
            f"loss before the first step {losses[OURS]:.6f}, within {difference:.1e} of timm's "
            f"({tolerance:.0e} allowed)"
        ),
    }


def _shares(args: argparse.Namespace, steps: Dict[str, Step], seconds: Dict[str, Any]) -> list:
    """Of the peak; the work is counted once, in a step of timm's that is not compiled."""
    plain = argparse.Namespace(**{**vars(args), "compile": False})
    step = Step(plain, TIMM) if args.compile else steps[TIMM]
    with FlopCounterMode(display=False) as counter:
        step()
    work = counter.get_total_flops()
    return [
        f"{name}: {work / seconds[name]['median'] / args.peak_tflops / 1e10:.1f} % of "
        f"{args.peak_tflops:g} TFLOPS, {work / args.batch / 1e9:.2f} GFLOP an image"
        for name in steps
    ]


def _measure_loaders(args: argparse.Namespace) -> Dict[str, Any]:
    """Seconds of a batch, in turn; each pass starts its workers and waits for its first batch."""
    number = max(2, _LOADED_IMAGES // args.batch)
    with tempfile.TemporaryDirectory() as folder, _quiet(), _forgotten(_DATASET):
        _make_files(folder, max(_FILES, args.batch))
        cfg = make_config(
            args,
            *("DATASETS.IMAGE_FOLDER", [[_DATASET, folder]]),
            *("DATASETS.TRAIN", (_DATASET,), "DATASETS.TEST", ()),
            *("MODEL.CLASSIFIER.NUM_CLASSES", _CLASSES),
        )
        register_image_folders(cfg)
        contenders = {TIMM: lambda: timm_batches(cfg, folder), OURS: lambda: our_batches(cfg)}
        values = {name: [] for name in contenders}
        for _ in range(args.runs):
            for name, start in contenders.items():
                values[name].append(_seconds_of_a_batch(start, number))
    return {"what": "loading them", **{name: summarise(v) for name, v in values.items()}}


def _seconds_of_a_batch(start: Callable[[], Iterator[Any]], number: int) -> float:
    batches = start()
    next(batches)
    began = time.perf_counter()
    for _ in range(number):
        next(batches)
    seconds = (time.perf_counter() - began) / number
    batches.close()
    return seconds


def _make_files(folder: str, number: int) -> None:
    for i, image in enumerate(make_images(_FILE_SIZE, number)):
        of_class = os.path.join(folder, str(i % _CLASSES))
        os.makedirs(of_class, exist_ok=True)
        pixels = image["image"].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(os.path.join(of_class, f"{i}.jpg"), quality=95)


@contextmanager
def _forgotten(name: str) -> Iterator[None]:
    try:
        yield
    finally:
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)


@contextmanager
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("detectron2", "rsb_d2", "timm")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
