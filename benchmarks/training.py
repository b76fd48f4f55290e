"""Training of Faster R-CNN with ResNet-50 and FPN: stock Detectron2 and this project.

Stock is the config of Detectron2's zoo with its own backbone, frozen batch norm and SGD; ours is
configs/frcnn_rsb_1x.yaml with AdamW and this project's switches. Both start from the same seeded
weights and take the same images from memory; their losses before the first step must agree. On a
GPU, stock runs in float32 without TF32, in TF32, and in Detectron2's AMP.
"""

import argparse
import tempfile
from typing import Any, Dict, Iterator, List

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.data.samplers import TrainingSampler
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer as build_stock_optimizer
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from rsb_d2.data.images import CheckedDatasetMapper
from rsb_d2.data.loader import TrainLoader
from rsb_d2.engine import Trainer
from rsb_d2.engine.trainer import prepare_for_training
from rsb_d2.solver import build_optimizer

from .harness import DTYPES, Different, Prepared, add_model_arguments
from .models import (
    make_images,
    make_objects,
    our_config,
    seed_weights,
    stock_config,
    tf32,
    to_stock,
    write_images,
)

# Relative. Rounding may change one of the 512 proposals that the box head samples; lower precision
# changes more of them, so only the sum of the losses is compared.
LOSS_TOLERANCE, LOSS_TOLERANCE_LOW = 2e-3, 0.03
_FILES, _LOADED_BATCHES = 64, 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--compile", action="store_true", help="ours with MODEL.COMPILE")
    parser.add_argument("--nchw", action="store_true", help="ours without MODEL.CHANNELS_LAST")
    parser.add_argument("--no-fold", action="store_true", help="ours without TIMM.FOLD_NORM")
    parser.add_argument(
        "--loader-workers",
        type=int,
        default=-1,
        metavar="N",
        help="also load 20 batches of 640 x 480 JPEG files, resized to 800, in N processes",
    )


def contenders(args: argparse.Namespace) -> List[str]:
    return ["stock", *(["stock, TF32", "stock, AMP"] if args.device != "cpu" else []), "ours"]


def prepare(args: argparse.Namespace, name: str) -> Prepared:
    run = _Run(args, name)
    calls = {
        "an iteration": run.step,
        "forward pass": run.forward,
        "forward and backward pass": lambda: run.backward(),
        "optimizer step": run.optimizer.step,
    }
    if args.loader_workers >= 0:
        batches = _load_ours(args) if name == "ours" else _load_stock(args)
        calls[f"loading {_LOADED_BATCHES} batches"] = lambda: [
            next(batches) for _ in range(_LOADED_BATCHES)
        ]
    return Prepared(calls, run.losses)


class _Run:
    """A model in training, with its optimizer and a batch."""

    def __init__(self, args: argparse.Namespace, name: str):
        self.batch = [
            {**image, "instances": make_objects(args.image_size, seed)}
            for seed, image in enumerate(make_images(args.image_size, args.batch))
        ]
        self.device = torch.device(args.device).type
        self.with_tf32, self.dtype = name == "stock, TF32", None
        cfg = our_config(args.device)
        if name == "ours":
            cfg.MODEL.CHANNELS_LAST, cfg.MODEL.COMPILE = not args.nchw, args.compile
            cfg.MODEL.TIMM.FOLD_NORM = not args.no_fold
        self.model = Trainer.build_model(cfg)
        seed_weights(self.model)
        if name == "ours":
            if args.dtype != "float32":
                self.dtype = DTYPES[args.dtype]
            prepare_for_training(self.model, cfg)
            self.optimizer = build_optimizer(_slow(cfg), self.model)
        else:
            if name == "stock, AMP":
                self.dtype = torch.float16  # Detectron2's
            weights, cfg = to_stock(self.model.state_dict()), stock_config(args.device)
            self.model = build_model(cfg)
            self.model.load_state_dict(weights)
            self.optimizer = build_stock_optimizer(_slow(cfg), self.model)
        self.model.train()
        self.scaler = torch.amp.GradScaler(self.device, enabled=self.dtype == torch.float16)

    def forward(self) -> Dict[str, torch.Tensor]:
        seed_all_rng(0)  # for the proposals that are sampled
        autocast = torch.autocast(self.device, self.dtype, self.dtype is not None)
        with tf32(self.with_tf32), autocast, EventStorage(1):
            return self.model(self.batch)

    def losses(self) -> Dict[str, float]:
        return {name: loss.item() for name, loss in self.forward().items()}

    def backward(self) -> None:
        loss = sum(self.forward().values())
        self.optimizer.zero_grad()
        with tf32(self.with_tf32):
            self.scaler.scale(loss).backward()

    def step(self) -> None:
        self.backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()


def _slow(cfg: CfgNode) -> CfgNode:
    """Set a learning rate so low that the weights, and with them the work, stay the same."""
    cfg.SOLVER.BASE_LR = 1e-8
    return cfg


def check(args: argparse.Namespace, results: Dict[str, Dict[str, float]]) -> str:
    stock, ours, tolerance = results["stock"], results["ours"], LOSS_TOLERANCE
    if args.dtype != "float32":
        stock, ours = ({"total loss": sum(x.values())} for x in (stock, ours))
        tolerance = LOSS_TOLERANCE_LOW
    difference = max(abs(ours[n] - loss) / max(abs(loss), 1e-3) for n, loss in stock.items())
    losses = ", ".join(f"{name} {loss:.4f}" for name, loss in stock.items())
    text = f"losses before the first step within {difference:.1e}: {losses}"
    if not difference <= tolerance:
        raise Different(text)
    return text


def _load_stock(args: argparse.Namespace) -> Iterator[Any]:
    with tempfile.TemporaryDirectory() as folder:
        yield from build_detection_train_loader(
            write_images(f"{folder}/{{}}.jpg", (480, 640), _FILES),
            mapper=DatasetMapper(stock_config(), is_train=True),
            sampler=TrainingSampler(_FILES, seed=0),
            total_batch_size=args.batch,
            num_workers=args.loader_workers,
        )


def _load_ours(args: argparse.Namespace) -> Iterator[Any]:
    cfg = our_config()
    cfg.SOLVER.IMS_PER_BATCH = args.batch
    with tempfile.TemporaryDirectory() as folder:
        yield from TrainLoader(
            write_images(f"{folder}/{{}}.jpg", (480, 640), _FILES),
            CheckedDatasetMapper(cfg, is_train=True),
            lambda seed: TrainingSampler(_FILES, seed=seed),
            total_batch_size=args.batch,
            num_workers=args.loader_workers,
            seed=0,
        )
