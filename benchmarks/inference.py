"""Inference of Faster R-CNN with ResNet-50 and FPN: stock Detectron2 and optimize_for_inference.

The weights are seeded ones, the same in both, which give 1,000 proposals and 100 detections of an
image as trained ones do. In float32 both must give the same detections. In lower precision a
model that was trained on the sample data, --weights, must reach the same AP.
"""

import argparse
from contextlib import ExitStack, contextmanager
from os.path import expanduser
from typing import Any, Callable, Dict, Iterator, List

import torch
from detectron2.structures import Instances
from torch import nn

from rsb_d2.addons.accelerate import optimize_for_inference
from rsb_d2.addons.accelerate.layers import fuse_all
from rsb_d2.errors import UserError

from . import arguments
from .gpu.closeness import compare_shares
from .gpu.precision import tf32
from .profiling import operator_table, peak_memory_alone
from .stock import build_both, make_images
from .timing import measure

SCORE_TOLERANCE = 1e-4
BOX_TOLERANCE = 0.01  # pixels
AP_TOLERANCE = 0.1  # points of 100
# Below it a model is none that was trained, and its AP says nothing of precision.
_LEAST_AP = 10.0

_PROPOSALS, _DETECTIONS = 1000, 100
_COMPILE = {"": False, "default": True, "reduce-overhead": "reduce-overhead"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``tools/benchmark.py inference``."""
    arguments.add_device_argument(parser)
    arguments.add_image_arguments(parser)
    arguments.add_dtype_argument(parser)
    arguments.add_profile_argument(parser)
    parser.add_argument(
        "--compile",
        nargs="?",
        const="default",
        default="",
        choices=list(_COMPILE),
        help="ours with torch.compile; or, on a GPU, with CUDA graphs",
    )
    parser.add_argument(
        "--no-fuse", action="store_true", help="ours without kernels for several layers at once"
    )
    parser.add_argument(
        "--weights",
        type=expanduser,
        default="",
        metavar="FILE",
        help="trained on the sample data; needed for --dtype other than float32 on the CPU",
    )


def run(args: argparse.Namespace) -> Dict[str, Any]:
    """Compare and time both detectors.

    Args:
        args (Namespace): of :func:`add_arguments`, with ``runs``.

    Returns:
        dict: as :mod:`benchmarks.report` describes it.

    Raises:
        UserError: if an option has no meaning here, or ``--weights`` is missing.
    """
    device, size = arguments.find_device(args.device), arguments.find_size(args.image_size)
    dtype = arguments.DTYPES[args.dtype]
    arguments.check_at_least_one(args, "batch")
    compile = _COMPILE[args.compile]
    if dtype != torch.float32 and not args.weights and device.type == "cpu":
        raise UserError(
            f"--dtype {args.dtype} is compared with float32 by AP: name with --weights a model "
            "that was trained on the sample data, as output/frcnn_rsb_sample/model_final.pth"
        )
    images = make_images(size, args.batch)
    stock, ours = build_both(device)
    report = {
        "title": "Inference of Faster R-CNN, ResNet-50 and FPN",
        "settings": {
            "image size": args.image_size,
            "batch": args.batch,
            "dtype of ours": args.dtype,
            "compiled": args.compile or False,
            "fused": not args.no_fuse,
            "device": str(device),
            "runs": args.runs,
        },
    }
    with torch.no_grad():
        with tf32(False):
            plain = optimize_for_inference(ours, compile=compile)
            report["comparison"] = compare(stock, plain, images)
        del plain
        if report["comparison"]["passed"] and args.weights and dtype != torch.float32:
            report["comparison"] = compare_ap(args.weights, dtype, compile, device)
        if not report["comparison"]["passed"]:
            return report
        fast = _ours(args, ours)
        del ours
        contenders = {"stock": Parts(stock, images)}
        if device.type == "cuda":
            contenders["stock, TF32"] = Parts(stock, images, tf32=True)
        if dtype != torch.float32:
            contenders["stock, autocast"] = Parts(stock, images, dtype)
        elif device.type == "cuda":
            contenders["stock, autocast"] = Parts(stock, images, torch.float16)
        contenders["ours"] = Parts(fast, images)
        if dtype != torch.float32 and not args.weights:
            found = (contenders[n].detections for n in ("stock", "stock, autocast", "ours"))
            report["comparison"] = compare_shares(*found, dtype)
            if not report["comparison"]["passed"]:
                return report
        report["settings"] |= _load(contenders)
        report["rows"] = _time(contenders, args.runs, device)
        if args.profile:
            report["profiles"] = {
                name: operator_table(parts.end_to_end, device) for name, parts in contenders.items()
            }
        del stock, fast, contenders
        report["memory"] = {
            name: peak_memory_alone(_prepare, args, name, device=device)
            for name in ("stock", "ours")
        }
    return report


def compare(stock: nn.Module, ours: nn.Module, images: List[dict]) -> Dict[str, Any]:
    """Compare the detections of two models in float32.

    Args:
        stock, ours (nn.Module): detectors.
        images (list[dict]): as they take them.

    Returns:
        dict: ``passed`` and ``text``, as a report has them.
    """
    pairs = [
        (a["instances"].to("cpu"), b["instances"].to("cpu"))
        for a, b in zip(stock(images), ours(images))
    ]
    numbers = [(len(a), len(b)) for a, b in pairs]
    if any(a != b for a, b in numbers):
        return {"passed": False, "text": f"numbers of detections, stock and ours: {numbers}"}
    if not sum(a for a, _ in numbers):
        return {"passed": False, "text": "nothing is detected, so there is nothing to compare"}
    score, box, classes = map(max, zip(*(_difference(a, b) for a, b in pairs)))
    return {
        "passed": score <= SCORE_TOLERANCE and box <= BOX_TOLERANCE and not classes,
        "text": (
            f"{sum(a for a, _ in numbers)} detections, scores within {score:.1e} "
            f"({SCORE_TOLERANCE:.0e} allowed), boxes within {box:.1e} pixels "
            f"({BOX_TOLERANCE:.0e} allowed), {classes} of other classes"
        ),
    }


def _difference(a: Instances, b: Instances) -> tuple:
    if not len(a):
        return 0.0, 0.0, 0
    # Detections of nearly equal scores may come in another order.
    distance = (a.pred_boxes.tensor[:, None] - b.pred_boxes.tensor[None]).abs().amax(dim=2)
    distance += (a.scores[:, None] - b.scores[None]).abs()
    distance += 1e4 * (a.pred_classes[:, None] != b.pred_classes[None])
    b = b[distance.argmin(dim=1)]
    return (
        (a.scores - b.scores).abs().max().item(),
        (a.pred_boxes.tensor - b.pred_boxes.tensor).abs().max().item(),
        (a.pred_classes != b.pred_classes).sum().item(),
    )


def compare_ap(
    weights: str, dtype: torch.dtype, compile: bool | str, device: torch.device
) -> Dict[str, Any]:
    """Compare the AP on the sample val split in a lower precision with that in float32.

    Args:
        weights (str): of a model trained with ``configs/frcnn_rsb_sample.yaml``.
        dtype (torch.dtype): of the optimized model.
        compile (bool or str): as :func:`rsb_d2.optimize_for_inference` takes it.
        device (torch.device): of both.

    Returns:
        dict: ``passed`` and ``text``, as a report has them.

    Raises:
        UserError: if the weights are not there, or detect next to nothing.
    """
    from rsb_d2.predictor import load_detector, load_predict_config

    from .sample import average_precision, sample_config

    cfg = sample_config(load_predict_config("frcnn_rsb_sample", weights, device=str(device)))
    model, _ = load_detector(cfg)
    expected = average_precision(cfg, model)
    if not expected >= _LEAST_AP:
        raise UserError(
            f"--weights: {weights} reaches an AP of {expected:.2f} on the sample data, which no "
            "trained model has; name one that was trained with configs/frcnn_rsb_sample.yaml"
        )
    found = average_precision(cfg, optimize_for_inference(model, dtype, compile))
    return {
        "passed": abs(found - expected) <= AP_TOLERANCE,
        "text": (
            f"AP {found:.2f} on the sample val split, {expected:.2f} in float32 "
            f"({AP_TOLERANCE} points apart allowed)"
        ),
    }


class Parts:
    """A detector's parts as functions without arguments, on what comes before them."""

    def __init__(
        self,
        model: nn.Module,
        images: List[dict],
        autocast: torch.dtype | None = None,
        tf32: bool = False,
    ):
        """
        Args:
            model (nn.Module): Faster R-CNN.
            images (list[dict]): as it takes them.
            autocast (torch.dtype or None): to run it in automatic mixed precision.
            tf32 (bool): compute float32 in TF32 on a GPU.
        """
        self.model = model
        self.batch = images
        self.autocast = autocast
        self.tf32 = tf32
        with self._context():
            self.images = model.preprocess_image(images)
            # Copied, as the next call of a CUDA graph writes into the same memory.
            features = model.backbone(self.images.tensor)
            self.features = {name: f.clone() for name, f in features.items()}
            self.proposals, _ = model.proposal_generator(self.images, self.features, None)
            heads = model.roi_heads
            self._pooler_inputs = (
                [self.features[f] for f in heads.box_in_features],
                [p.proposal_boxes for p in self.proposals],
            )
            self.detections = [r["instances"] for r in model(images)]

    @contextmanager
    def _context(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(tf32(self.tf32))
            if self.autocast is not None:
                stack.enter_context(torch.autocast(self.model.device.type, self.autocast))
            yield

    def end_to_end(self) -> None:
        with self._context():
            self.model(self.batch)

    def backbone(self) -> None:
        with self._context():
            self.model.backbone(self.images.tensor)

    def rpn(self) -> None:
        with self._context():
            self.model.proposal_generator(self.images, self.features, None)

    def roi_heads(self) -> None:
        with self._context():
            self.model.roi_heads(self.images, self.features, self.proposals, None)

    def pooler(self) -> None:
        with self._context():
            self.model.roi_heads.box_pooler(*self._pooler_inputs)


_PARTS = {
    "end to end": Parts.end_to_end,
    "backbone and FPN": Parts.backbone,
    "RPN": Parts.rpn,
    "ROI heads": Parts.roi_heads,
    "of it the pooler": Parts.pooler,
}


def _load(contenders: Dict[str, Parts]) -> Dict[str, Any]:
    """How many proposals and detections an image has, of all contenders."""
    proposals = [len(p) for parts in contenders.values() for p in parts.proposals]
    detections = [len(d) for parts in contenders.values() for d in parts.detections]
    load = {"proposals": min(proposals), "detections": min(detections)}
    if load["proposals"] < _PROPOSALS or load["detections"] < _DETECTIONS:
        load["load"] = f"less than the {_PROPOSALS} and {_DETECTIONS} of a real image"
    return load


def _time(contenders: Dict[str, Parts], runs: int, device: torch.device) -> List[Dict[str, Any]]:
    rows = []
    for what, part in _PARTS.items():
        calls: Dict[str, Callable[[], None]] = {
            name: part.__get__(parts) for name, parts in contenders.items()
        }
        rows.append({"what": what, **measure(calls, runs, warmup=2, device=device)})
    return rows


def _prepare(args: argparse.Namespace, name: str) -> Callable[[], Any]:
    """A call of one contender on the images, which it is built for."""
    device = arguments.find_device(args.device)
    images = make_images(arguments.find_size(args.image_size), args.batch)
    model = build_both(device)[name == "ours"]
    if name == "ours":
        model = _ours(args, model)
    return torch.no_grad()(lambda: model(images))


def _ours(args: argparse.Namespace, model: nn.Module) -> nn.Module:
    fast = optimize_for_inference(model, arguments.DTYPES[args.dtype], _COMPILE[args.compile])
    if args.no_fuse:
        fuse_all(fast, False)
    return fast
