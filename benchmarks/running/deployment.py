"""A detector on a CPU in PyTorch, optimize_for_inference, onnxruntime and OpenVINO, side by side.

Faster R-CNN with ResNet-50 and FPN and seeded weights, which give 1,000 proposals and 100
detections of an image as trained ones do, in float32; one image at a time. The files are written
as tools/export.py does. All must give the detections of PyTorch.
"""

import argparse
import os
import tempfile
import time
from importlib.metadata import version
from typing import Any, Dict, List

import numpy as np
import torch
from detectron2.modeling import build_model
from torch import nn

from rsb_d2.addons.accelerate import optimize_for_inference
from rsb_d2.addons.export.comparison import Detections, Difference, compare
from rsb_d2.addons.export.contract import input_contract, score_threshold
from rsb_d2.addons.export.formats import ONNX, OPENVINO, format_of
from rsb_d2.addons.export.running import Detector, run_model
from rsb_d2.data.class_names import ClassNames
from rsb_d2.errors import UserError
from rsb_d2.memory import reuse_freed_memory

from .. import arguments
from ..inference import BOX_TOLERANCE, SCORE_TOLERANCE
from ..stock import make_images, our_config, seed_weights
from ..timing import summarise

_RUNTIMES = {"onnxruntime": ONNX, "OpenVINO": OPENVINO}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``tools/benchmark.py deployment``."""
    parser.add_argument("--image-size", default="640x853", metavar="HxW", help="pixels (640x853)")
    parser.add_argument("--threads", type=int, help="of each (as many as torch takes)")
    parser.add_argument(
        "--reuse-memory", action="store_true", help="with rsb_d2.memory.reuse_freed_memory()"
    )
    parser.add_argument("--fixed", action="store_true", help="files for images of that size alone")


def run(args: argparse.Namespace) -> Dict[str, Any]:
    """Compare and time all of them.

    Args:
        args (Namespace): of :func:`add_arguments`, with ``runs``.

    Returns:
        dict: as :mod:`benchmarks.report` describes it.

    Raises:
        UserError: if an option has no meaning here, or a runtime is not installed.
    """
    size = arguments.find_size(args.image_size)
    if args.threads is None:
        args.threads = torch.get_num_threads()
    arguments.check_at_least_one(args, "threads")
    for ending in _RUNTIMES.values():
        format_of(ending)  # is installed
    torch.set_num_threads(args.threads)
    if args.reuse_memory and not reuse_freed_memory():
        raise UserError("--reuse-memory: the C library is not glibc, whose memory it is about")
    (record,) = make_images(size, 1)
    image = record["image"].permute(1, 2, 0).contiguous().numpy()
    cfg = our_config()
    model = build_model(cfg).eval().requires_grad_(False)
    seed_weights(model)
    detectors = {
        "PyTorch": run_model(model),
        "optimized": run_model(optimize_for_inference(model)),
    }
    classes = ClassNames((), ())
    contract = input_contract(cfg, classes, size if args.fixed else None)
    for name, ending in _RUNTIMES.items():
        detectors[name] = _exported(model, ending, image, contract, args)
    return {
        "title": "Faster R-CNN, ResNet-50 and FPN, one image at a time, in float32",
        "settings": {
            "image size": args.image_size,
            "files": "for that size alone" if args.fixed else "for any size",
            "threads": args.threads,
            "freed memory": "reused" if args.reuse_memory else "as the C library does",
            **{name.lower(): version(name.lower()) for name in _RUNTIMES},
            "runs": args.runs,
        },
        **compare_and_time(detectors, image, score_threshold(cfg), args.runs),
    }


def compare_and_time(
    detectors: Dict[str, Detector], image: np.ndarray, threshold: float, runs: int
) -> Dict[str, Any]:
    """Compare the detections of all with those of the first, and time them if they are the same.

    Args:
        detectors (dict[str, Detector]): by name.
        image (ndarray): uint8 (H, W, 3).
        threshold (float): lowest score of a detection.
        runs (int): timed runs of each.

    Returns:
        dict: ``comparison`` and, if it passed, ``rows`` of a report.
    """
    expected, *others = (detect(image) for detect in detectors.values())
    try:
        found = _compare_all(expected, dict(zip(list(detectors)[1:], others)), threshold)
    except UserError as e:
        return {"comparison": {"passed": False, "text": str(e)}}
    text = (
        f"{len(expected)} detections, scores within {found.score:.1e} ({SCORE_TOLERANCE:.0e} "
        f"allowed), boxes within {found.box:.1e} pixels ({BOX_TOLERANCE:.0e} allowed)"
    )
    return {"comparison": {"passed": True, "text": text}, "rows": _time(detectors, image, runs)}


def _time(detectors: Dict[str, Detector], image: np.ndarray, runs: int) -> List[Dict[str, Any]]:
    """Wall clock and processor time of the same calls, in turn, after one more of each."""
    clocks = {"an image": time.perf_counter, "processor time": time.process_time}
    seconds = {what: {name: [] for name in detectors} for what in clocks}
    for number in range(runs + 1):
        for name, detect in detectors.items():
            started = {what: clock() for what, clock in clocks.items()}
            detect(image)
            for what, clock in clocks.items():
                if number:
                    seconds[what][name].append(clock() - started[what])
    return [
        {"what": what, **{name: summarise(values) for name, values in of_each.items()}}
        for what, of_each in seconds.items()
    ]


def _compare_all(
    expected: Detections, others: Dict[str, Detections], threshold: float
) -> Difference:
    if not len(expected):
        raise UserError("nothing is detected, so there is nothing to compare")
    total = Difference()
    for name, found in others.items():
        try:
            total.add(
                compare(expected, found, threshold, len(expected), BOX_TOLERANCE, SCORE_TOLERANCE)
            )
        except UserError as e:
            raise UserError(f"{name}: {e}") from None
    return total


def _exported(
    model: nn.Module,
    ending: str,
    image: np.ndarray,
    contract: Dict[str, str],
    args: argparse.Namespace,
) -> Detector:
    kind = format_of(ending)
    contents = kind.write(kind.wrap(model), image, contract, args.fixed)
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, f"model{e}") for e in kind.endings]
        for path, content in zip(paths, contents):
            with open(path, "wb") as f:
                f.write(content)
        return kind.load(*paths, threads=args.threads)
