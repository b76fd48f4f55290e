"""A step and a loader of each: timm's parts as its train.py joins them, and this project's."""

import argparse
from typing import Any, Callable, Dict, Iterator, List

import numpy as np
import timm
import torch
from detectron2.config import CfgNode
from timm.data import Mixup, create_dataset, create_loader
from timm.loss import BinaryCrossEntropy
from timm.optim import create_optimizer_v2
from torch import nn

from rsb_d2 import model_zoo
from rsb_d2.data.loader import TrainLoader
from rsb_d2.engine import Trainer
from rsb_d2.engine.trainer import prepare_for_training
from rsb_d2.pretraining.data import build_train_loader
from rsb_d2.solver import build_optimizer

from .. import arguments
from ..gpu.precision import tf32
from ..stock import make_images

TIMM, OURS = "timm", "ours"
# So slow a learning that the load stays what it is.
_RATE = 1e-8
_MIX_SEED = (0, 0)


def make_config(args: argparse.Namespace, *opts: Any) -> CfgNode:
    """The config of ours, whose values timm's loop is given as well.

    Args:
        args (Namespace): of ``tools/benchmark.py pretraining``.
        opts: ``KEY, VALUE, ...`` beyond its options.
    """
    cfg = model_zoo.get_config(f"pretrain/resnet50_rsb_{args.procedure}.yaml")
    cfg.MODEL.DEVICE = str(arguments.find_device(args.device))
    cfg.MODEL.TIMM.NAME = args.model
    cfg.MODEL.CHANNELS_LAST, cfg.MODEL.COMPILE = not args.nchw, args.compile
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR = args.batch, _RATE
    # In A1 timm's order of smoothing and threshold is another; the work is the same.
    cfg.MODEL.CLASSIFIER.LABEL_SMOOTHING, cfg.MODEL.CLASSIFIER.SMOOTH_AFTER_THRESH = 0.0, False
    if args.train_size:
        cfg.INPUT.CLASSIFIER.TRAIN_SIZE = args.train_size
    cfg.DATALOADER.NUM_WORKERS = max(args.loader_workers, 0)
    cfg.SEED = 0
    cfg.merge_from_list(list(opts))
    return cfg


class Step:
    """A model in training, with its optimizer and a batch.

    Args:
        args (Namespace): as of :func:`make_config`.
        name (str): :data:`TIMM` or :data:`OURS`.
    """

    def __init__(self, args: argparse.Namespace, name: str):
        cfg = make_config(args)
        self.device = torch.device(cfg.MODEL.DEVICE)
        self.dtype = arguments.DTYPES[args.dtype]
        self.tf32 = args.tf32
        size, classes = cfg.INPUT.CLASSIFIER.TRAIN_SIZE, cfg.MODEL.CLASSIFIER.NUM_CLASSES
        images = [x["image"] for x in make_images((size, size), args.batch)]
        labels = np.random.default_rng(0).integers(0, classes, args.batch).tolist()
        torch.manual_seed(0)
        ours = Trainer.build_model(cfg)
        if name == OURS:
            self.model = ours
            prepare_for_training(self.model, cfg)
            self.optimizer = build_optimizer(cfg, self.model)
            batch = [
                {"image": image, "label": label, "mix_seed": _MIX_SEED}
                for image, label in zip(images, labels)
            ]
            self._loss: Callable[[], torch.Tensor] = lambda: self.model(batch)["loss_cls"]
        else:
            weights = ours.network.state_dict()
            del ours
            self._make_timm(cfg, weights, torch.stack(images), torch.tensor(labels))
        self.model.train()
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def _make_timm(
        self, cfg: CfgNode, weights: Dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor
    ) -> None:
        keys, images = cfg.MODEL.CLASSIFIER, cfg.INPUT.CLASSIFIER
        model: nn.Module = timm.create_model(
            cfg.MODEL.TIMM.NAME,
            num_classes=keys.NUM_CLASSES,
            drop_path_rate=keys.DROP_PATH_RATE or None,
        )
        model.load_state_dict(weights)
        model.to(self.device)
        if cfg.MODEL.CHANNELS_LAST:
            model.to(memory_format=torch.channels_last)
        self.optimizer = create_optimizer_v2(
            model, opt="lamb", lr=_RATE, weight_decay=cfg.SOLVER.WEIGHT_DECAY
        )
        self.model = torch.compile(model) if cfg.MODEL.COMPILE else model
        mixup = Mixup(
            mixup_alpha=images.MIXUP_ALPHA,
            cutmix_alpha=images.CUTMIX_ALPHA,
            label_smoothing=0.0,
            num_classes=keys.NUM_CLASSES,
        )
        loss = BinaryCrossEntropy(target_threshold=keys.TARGET_THRESH)
        # As its PrefetchLoader normalises.
        mean, std = (
            torch.tensor(values, device=self.device).view(1, 3, 1, 1)
            for values in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
        )
        layout = torch.channels_last if cfg.MODEL.CHANNELS_LAST else torch.contiguous_format

        def compute() -> torch.Tensor:
            images = x.to(self.device, non_blocking=True).float().sub_(mean).div_(std)
            labels = y.to(self.device, non_blocking=True)
            np.random.seed(np.random.SeedSequence(_MIX_SEED).generate_state(4))
            images, targets = mixup(images, labels)
            return loss(self.model(images.contiguous(memory_format=layout)), targets)

        self._loss = compute

    def forward(self) -> torch.Tensor:
        """The loss of the batch."""
        with torch.autocast(self.device.type, self.dtype, self.dtype != torch.float32):
            return self._loss()

    def first_loss(self) -> float:
        """The loss, with the random numbers of stochastic depth from a seed."""
        torch.manual_seed(1)
        with tf32(self.tf32):
            return self.forward().item()

    def __call__(self) -> None:
        """One step of training."""
        with tf32(self.tf32):
            loss = self.forward()
            self.optimizer.zero_grad()
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()


def our_batches(cfg: CfgNode) -> Iterator[List[dict]]:
    """Batches of ``DATASETS.TRAIN``, which is registered, by this project's loader."""
    loader: TrainLoader = build_train_loader(cfg)
    return iter(loader)


def timm_batches(cfg: CfgNode, folder: str) -> Iterator[Any]:
    """The same images by timm's, in uint8 as its PrefetchLoader takes them, epoch after epoch."""
    keys = cfg.INPUT.CLASSIFIER
    loader = create_loader(
        create_dataset("", root=folder),
        input_size=(3, keys.TRAIN_SIZE, keys.TRAIN_SIZE),
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        is_training=True,
        scale=tuple(keys.CROP_SCALE),
        ratio=tuple(keys.CROP_RATIO),
        hflip=keys.FLIP_PROB,
        color_jitter=None,
        auto_augment=keys.AUTO_AUGMENT,
        interpolation=keys.INTERPOLATION,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        persistent_workers=cfg.DATALOADER.NUM_WORKERS > 0,
        device=torch.device(cfg.MODEL.DEVICE),
    ).loader
    while True:
        yield from loader
