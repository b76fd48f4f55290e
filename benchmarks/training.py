"""Training of Faster R-CNN with ResNet-50 and FPN: stock Detectron2 and this project.

Stock is Detectron2's zoo config with its own backbone, frozen batch norm and SGD; ours is
configs/frcnn_rsb_1x.yaml with AdamW and the switches of this project. Both start from the same
seeded weights and take the same images, from memory. Their losses before the first step must agree;
they have the same layers, the first two stages frozen, but batch norm trains in ours alone.

On a GPU stock is in float32 with TF32 off, in TF32 and in Detectron2's AMP.
"""

import argparse
import logging
import os
import tempfile
import time
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.samplers import TrainingSampler
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer as build_stock_optimizer
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from PIL import Image

from rsb_d2.data.images import CheckedDatasetMapper
from rsb_d2.data.loader import TrainLoader
from rsb_d2.engine import Trainer
from rsb_d2.engine.trainer import prepare_for_training
from rsb_d2.solver import build_optimizer

from . import arguments
from .gpu.precision import tf32
from .profiling import operator_table, peak_memory_alone
from .stock import (
    make_images,
    our_config,
    seed_weights,
    stock_config,
    to_stock,
)
from .timing import measure, summarise

# Relative. A rounding may change one of the 512 proposals that the box head samples.
LOSS_TOLERANCE = 2e-3
# In lower precision other proposals are drawn, so it is of the sum of the losses.
LOSS_TOLERANCE_LOW = 0.03

_OBJECTS = 7  # of an image, as in COCO
_FILES, _LOADED_BATCHES = 64, 20
_STOCK, _STOCK_TF32, _STOCK_AMP, _OURS = "stock", "stock, TF32", "stock, AMP", "ours"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``tools/benchmark.py training``."""
    arguments.add_device_argument(parser)
    arguments.add_image_arguments(parser)
    arguments.add_dtype_argument(parser)
    arguments.add_profile_argument(parser)
    parser.add_argument("--compile", action="store_true", help="ours with MODEL.COMPILE")
    parser.add_argument("--nchw", action="store_true", help="ours without MODEL.CHANNELS_LAST")
    parser.add_argument("--no-fold", action="store_true", help="ours without TIMM.FOLD_NORM")
    parser.add_argument(
        "--loader-workers",
        type=int,
        default=-1,
        metavar="N",
        help="also measure the loading of 640 x 480 JPEG files resized to 800, by N processes",
    )


def run(args: argparse.Namespace) -> Dict[str, Any]:
    """Compare and time an iteration of both.

    Args:
        args (Namespace): of :func:`add_arguments`, with ``runs``.

    Returns:
        dict: as :mod:`benchmarks.report` describes it.

    Raises:
        UserError: if an option is out of its range.
    """
    device = arguments.find_device(args.device)
    arguments.find_size(args.image_size)
    arguments.check_at_least_one(args, "batch")
    is_low = args.dtype != "float32"
    names = [_STOCK, *([_STOCK_TF32, _STOCK_AMP] if device.type == "cuda" else []), _OURS]
    report = {
        "title": "Training of Faster R-CNN, ResNet-50 and FPN",
        "settings": {
            "image size": args.image_size,
            "batch": args.batch,
            "dtype of ours": args.dtype,
            "channels-last": not args.nchw,
            "norms folded": not args.no_fold,
            "compiled": args.compile,
            "device": str(device),
            "runs": args.runs,
        },
    }
    runs = {name: _Run(args, name) for name in names}
    losses = {name: runs[name].losses() for name in (_STOCK, _OURS)}
    report["comparison"] = _compare(losses, is_low)
    if not report["comparison"]["passed"]:
        return report
    calls = {name: r.step for name, r in runs.items()}
    seconds = measure(calls, args.runs, warmup=2 if args.runs > 1 else 1, device=device)
    report["rows"] = [{"what": "an iteration", **seconds}]
    if device.type == "cpu":
        report["rows"] += _phases(runs, args.runs)
    if args.profile:
        report["profiles"] = {name: operator_table(r.step, device) for name, r in runs.items()}
    del runs, calls
    report["memory"] = {
        name: peak_memory_alone(_prepare, args, name, device=device) for name in names
    }
    if args.loader_workers >= 0:
        report["notes"] = [_measure_loader(args, seconds[_OURS]["median"])]
    return report


class _Run:
    """A model in training, with its optimizer and a batch."""

    def __init__(self, args: argparse.Namespace, name: str):
        device, size = arguments.find_device(args.device), arguments.find_size(args.image_size)
        self.device = device.type
        self.batch = [
            {**image, "instances": _objects(size, seed)}
            for seed, image in enumerate(make_images(size, args.batch))
        ]
        self.dtype = None
        self.tf32 = name == _STOCK_TF32
        cfg = our_config(device)
        if name == _OURS:
            cfg.MODEL.CHANNELS_LAST = not args.nchw
            cfg.MODEL.TIMM.FOLD_NORM, cfg.MODEL.COMPILE = not args.no_fold, args.compile
        weights = Trainer.build_model(cfg)
        seed_weights(weights)
        if name == _OURS:
            if args.dtype != "float32":
                self.dtype = arguments.DTYPES[args.dtype]
            self.model = weights
            prepare_for_training(self.model, cfg)
            optimizer = build_optimizer(_slow(cfg), self.model)
        else:
            if name == _STOCK_AMP:
                self.dtype = torch.float16  # Detectron2's
            cfg = stock_config(device)
            self.model = build_model(cfg)
            self.model.load_state_dict(to_stock(weights.state_dict()))
            optimizer = build_stock_optimizer(_slow(cfg), self.model)
        self.model.train()
        self.optimizer = optimizer
        self.scaler = torch.amp.GradScaler(self.device, enabled=self.dtype == torch.float16)

    def forward(self) -> Dict[str, torch.Tensor]:
        seed_all_rng(0)  # of the proposals that are drawn
        enabled = self.dtype is not None
        with torch.autocast(self.device, self.dtype, enabled), EventStorage(1):
            return self.model(self.batch)

    def losses(self) -> Dict[str, float]:
        with tf32(self.tf32):
            return {name: loss.item() for name, loss in self.forward().items()}

    def step(self) -> None:
        with tf32(self.tf32):
            self._finish(sum(self.forward().values()))

    def _finish(self, loss: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def phases(self) -> List[float]:
        """Seconds of the forward pass, the backward pass and the optimizer, on a CPU."""
        times = [time.perf_counter()]
        loss = sum(self.forward().values())
        times.append(time.perf_counter())
        self.optimizer.zero_grad()
        loss.backward()
        times.append(time.perf_counter())
        self.optimizer.step()
        times.append(time.perf_counter())
        return np.diff(times).tolist()


def _slow(cfg: CfgNode) -> CfgNode:
    """So slow a learning that seeded weights stay what they are, and so does the load."""
    cfg.SOLVER.BASE_LR = 1e-8
    return cfg


def _objects(size: tuple, seed: int) -> Instances:
    rng = np.random.default_rng(seed)
    height, width = size
    corner = rng.uniform(0, 0.6, (_OBJECTS, 2)) * [width, height]
    far = corner + rng.uniform(0.05, 0.4, (_OBJECTS, 2)) * [width, height]
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(np.concatenate([corner, far], axis=1)).float())
    instances.gt_classes = torch.tensor(rng.integers(0, 80, _OBJECTS))
    return instances


def _compare(losses: Dict[str, Dict[str, float]], is_low: bool) -> Dict[str, Any]:
    if is_low:
        losses = {name: {"total loss": sum(found.values())} for name, found in losses.items()}
    reference, tolerance = losses[_STOCK], LOSS_TOLERANCE_LOW if is_low else LOSS_TOLERANCE
    difference = max(
        abs(found[name] - loss) / max(abs(loss), 1e-3)
        for found in losses.values()
        for name, loss in reference.items()
    )
    return {
        "passed": bool(difference <= tolerance),
        "text": (
            f"losses before the first step within {difference:.1e} of stock's float32 "
            f"({tolerance:.0e} allowed): "
            + ", ".join(f"{name} {loss:.4f}" for name, loss in reference.items())
        ),
    }


def _phases(runs: Dict[str, _Run], number: int) -> List[Dict[str, Any]]:
    seconds: Dict[str, List[List[float]]] = {name: [] for name in runs}
    for _ in range(number):
        for name, run in runs.items():
            seconds[name].append(run.phases())
    return [
        {"what": what, **{name: summarise([v[i] for v in vs]) for name, vs in seconds.items()}}
        for i, what in enumerate(["of it the forward pass", "the backward pass", "the optimizer"])
    ]


def _prepare(args: argparse.Namespace, name: str) -> Callable[[], None]:
    return _Run(args, name).step


def _measure_loader(args: argparse.Namespace, iteration: float) -> str:
    with tempfile.TemporaryDirectory() as folder, quiet():
        cfg = our_config(args.device)
        cfg.SOLVER.IMS_PER_BATCH = args.batch
        mapper = CheckedDatasetMapper(cfg, is_train=True)
        loader = TrainLoader(
            make_files(folder),
            mapper,
            lambda seed: TrainingSampler(_FILES, seed=seed),
            total_batch_size=args.batch,
            num_workers=args.loader_workers,
            seed=0,
        )
        batches = iter(loader)
        next(batches)  # starts the workers
        start = time.perf_counter()
        for _ in range(_LOADED_BATCHES):
            next(batches)
        seconds = (time.perf_counter() - start) / _LOADED_BATCHES
        batches.close()
    return (
        f"loading {args.batch} JPEG files of 640 x 480, resized to 800, with "
        f"{args.loader_workers} workers: {seconds:.3f} s, {100 * seconds / iteration:.1f} % of "
        "an iteration of ours"
    )


def make_files(folder: str) -> List[dict]:
    """Make JPEG files with noise in them, and objects; their records, in Detectron2's format."""
    records = []
    for i, image in enumerate(make_images((480, 640), _FILES)):
        path = os.path.join(folder, f"{i}.jpg")
        Image.fromarray(image["image"].permute(1, 2, 0).numpy()).save(path, quality=95)
        objects = _objects((480, 640), i)
        annotations = [
            {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": label, "iscrowd": 0}
            for box, label in zip(objects.gt_boxes.tensor.tolist(), objects.gt_classes.tolist())
        ]
        records.append(
            {
                "file_name": path,
                "height": 480,
                "width": 640,
                "image_id": i,
                "annotations": annotations,
            }
        )
    return records


@contextmanager
def quiet() -> Iterator[None]:
    """Only warnings are logged until the block ends."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)
