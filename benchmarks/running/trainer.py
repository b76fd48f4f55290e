"""Whole iterations of rsb_d2's Trainer and of Detectron2's DefaultTrainer: data, step and hooks.

Both train the same Faster R-CNN from the same weights, on the same JPEG files and by the same SGD;
what makes ours faster in training (`MODEL.TIMM.FOLD_NORM` and the like) is off. They take turns,
some iterations each. In one process both see the same images in the same order, and their losses
must agree; two processes talk over gloo, or NCCL with GPUs. The processor's seconds are those of
the main process, which other programs disturb less than the clock.
"""

import argparse
import os
import tempfile
import time
from typing import Any, Dict, Iterable, List

import numpy as np
import torch
import torch.multiprocessing as mp
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detectron2.data.samplers import TrainingSampler
from detectron2.engine import DefaultTrainer
from detectron2.engine.launch import _distributed_worker, _find_free_port
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from rsb_d2.engine import Trainer
from rsb_d2.errors import UserError

from .. import arguments
from ..stock import our_config
from ..timing import summarise
from ..training import make_files, quiet

# Relative, of the total loss of each of the first iterations.
LOSS_TOLERANCE = 1e-4
_COMPARED = 3

_DATA = "benchmark_of_iterations"


class _Stock(DefaultTrainer):
    """Detectron2's, with the images in the order of the config's seed, as ours has them."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable:
        sampler = TrainingSampler(len(DatasetCatalog.get(_DATA)), seed=cfg.SEED)
        return build_detection_train_loader(cfg, sampler=sampler)


_TRAINERS = {"stock": _Stock, "ours": Trainer}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``tools/benchmark.py trainer``."""
    arguments.add_device_argument(parser)
    arguments.add_image_arguments(parser, "240x320")
    parser.add_argument("--model", default="resnet18", help="timm's name (resnet18)")
    parser.add_argument("--iterations", type=int, default=10, help="of each in a turn (10)")
    parser.add_argument("--loader-workers", type=int, default=0, metavar="N", help="of each (0)")
    parser.add_argument(
        "--processes", type=int, nargs="+", default=[1, 2], help="of a training (1 2)"
    )


def run(args: argparse.Namespace) -> Dict[str, Any]:
    """Compare and time the trainers.

    Args:
        args (Namespace): of :func:`add_arguments`, with ``runs``.

    Returns:
        dict: as :mod:`benchmarks.report` describes it.

    Raises:
        UserError: if an option is out of its range.
    """
    device = arguments.find_device(args.device)
    arguments.find_size(args.image_size)
    arguments.check_at_least_one(args, "batch", "iterations")
    most = torch.cuda.device_count() if device.type == "cuda" else max(args.processes)
    if not 1 <= min(args.processes) <= max(args.processes) <= most:
        raise UserError(f"--processes is {args.processes}; it must be from 1 to {most}")
    report = {
        "title": f"Whole iterations of a Faster R-CNN with {args.model}",
        "settings": {
            "image size": args.image_size,
            "batch of a process": args.batch,
            "iterations in a turn": args.iterations,
            "workers that load": args.loader_workers,
            "device": str(device),
            "runs": args.runs,
        },
        "rows": [],
    }
    for number in args.processes:
        found = _run_in_processes(args, number)
        if number == 1:
            report["comparison"] = _compare(found["losses"])
            if not report["comparison"]["passed"]:
                return {**report, "rows": []}
        what = f"{number} process{'es' if number > 1 else ''}"
        for i, kind in enumerate(("clock", "processor")):
            columns = {n: summarise([turn[i] for turn in found["turns"][n]]) for n in _TRAINERS}
            report["rows"].append({"what": f"an iteration, {what}, {kind}", **columns})
    text = "not compared: only one process sees the images in the same order in both"
    report.setdefault("comparison", {"passed": True, "text": text})
    return report


def _run_in_processes(args: argparse.Namespace, number: int) -> Dict[str, Any]:
    """The result of the main one of so many processes."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "found.pth")
        if number == 1:
            _work(args, folder, path)
        else:
            url = f"tcp://127.0.0.1:{_find_free_port()}"
            arguments_of_work = (_work, number, number, 0, url, (args, folder, path))
            mp.spawn(_distributed_worker, arguments_of_work, nprocs=number)
        return torch.load(path, weights_only=True)


def _work(args: argparse.Namespace, folder: str, path: str) -> None:
    """What each process does."""
    folder = os.path.join(folder, str(comm.get_rank()))
    os.mkdir(folder)
    with quiet():
        found = _measure(args, folder)
    if comm.is_main_process():
        torch.save(found, path)
    if comm.get_world_size() > 1:
        comm.synchronize()
        torch.distributed.destroy_process_group()


def _measure(args: argparse.Namespace, folder: str) -> Dict[str, Any]:
    records = make_files(folder)
    DatasetCatalog.register(_DATA, lambda: records)
    MetadataCatalog.get(_DATA).thing_classes = [f"class {i}" for i in range(80)]
    try:
        loops = {name: _Loop(kind, _config(args, folder, name)) for name, kind in _TRAINERS.items()}
        loops["ours"].take_weights_of(loops["stock"])
        for loop in loops.values():  # starts the loaders, which draw a random number in stock
            loop.turn(1)
        losses = {name: [loop.turn(1)[2] for _ in range(_COMPARED)] for name, loop in loops.items()}
        turns: Dict[str, List[List[float]]] = {name: [] for name in loops}
        for _ in range(args.runs):
            for name, loop in loops.items():
                turns[name].append(loop.turn(args.iterations)[:2])
        return {"losses": losses, "turns": turns}
    finally:
        DatasetCatalog.remove(_DATA)
        MetadataCatalog.remove(_DATA)


class _Loop:
    """A trainer between ``before_train`` and ``after_train``, which goes on when it is told.

    Args:
        kind (type): of trainer.
        cfg (CfgNode): its config.
    """

    def __init__(self, kind: type, cfg: CfgNode):
        seed_all_rng(1)
        self._trainer = kind(cfg)
        self._trainer.iter = self._trainer.start_iter = 0
        self._trainer.storage = EventStorage(0)
        with self._trainer.storage:
            self._trainer.before_train()
        self._num_turns = 0

    def take_weights_of(self, other: "_Loop") -> None:
        self._trainer.model.load_state_dict(other._trainer.model.state_dict())

    def turn(self, iterations: int) -> List[float]:
        """Go on; seconds of an iteration, the processor's, and the last total loss."""
        trainer = self._trainer
        seed_all_rng(self._num_turns)  # of the proposals that are drawn
        self._num_turns += 1
        comm.synchronize()
        start, cpu = time.perf_counter(), time.process_time()
        with trainer.storage:
            for _ in range(iterations):
                trainer.before_step()
                trainer.run_step()
                trainer.after_step()
                trainer.iter += 1
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        loss = trainer.storage.latest().get("total_loss", (0.0,))[0]
        return [seconds / iterations, cpu / iterations, float(loss)]


def _config(args: argparse.Namespace, folder: str, name: str) -> CfgNode:
    cfg = our_config(args.device)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (_DATA,), ()
    cfg.DATALOADER.NUM_WORKERS = args.loader_workers
    cfg.MODEL.TIMM.NAME = args.model
    cfg.MODEL.TIMM.FOLD_NORM = cfg.MODEL.CHANNELS_LAST = False
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR = "SGD", 1e-5
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
    cfg.SOLVER.IMS_PER_BATCH = args.batch * comm.get_world_size()
    cfg.INPUT.MIN_SIZE_TRAIN = (min(arguments.find_size(args.image_size)),)
    cfg.INPUT.MAX_SIZE_TRAIN = max(arguments.find_size(args.image_size))
    cfg.INPUT.RANDOM_FLIP = "none"  # each draws its own
    cfg.SEED = 1
    cfg.OUTPUT_DIR = os.path.join(folder, name)
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    return cfg


def _compare(losses: Dict[str, List[float]]) -> Dict[str, Any]:
    stock, ours = np.array(losses["stock"]), np.array(losses["ours"])
    difference = float(np.max(np.abs(ours / stock - 1)))
    return {
        "passed": difference <= LOSS_TOLERANCE,
        "text": (
            f"total losses of the first {_COMPARED} iterations within {difference:.1e} "
            f"({LOSS_TOLERANCE:.0e} allowed): {', '.join(f'{loss:.4f}' for loss in stock)}"
        ),
    }
