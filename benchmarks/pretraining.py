"""Pretraining of an image classifier: timm's own loop and this project.

timm's loop is its model, Mixup, loss, LAMB and loader as its train.py combines them; ours is a
config of configs/pretrain. Both use the same switches, weights and images, and mix the images by
the same random numbers; their losses before the first step must agree.
"""

import argparse
import os
import tempfile
from typing import Any, Dict, Iterator, List

import numpy as np
import timm
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from timm.data import Mixup, create_dataset, create_loader
from timm.loss import BinaryCrossEntropy
from timm.optim import create_optimizer_v2

from rsb_d2 import model_zoo
from rsb_d2.engine import Trainer
from rsb_d2.engine.trainer import prepare_for_training
from rsb_d2.errors import UserError
from rsb_d2.pretraining.data import build_train_loader, register_image_folders
from rsb_d2.solver import build_optimizer

from .harness import DTYPES, Prepared, device, positive, verdict
from .models import LOW_RATE, Step, make_images, write_images

LOSS_TOLERANCE, LOSS_TOLERANCE_LOW = 1e-4, 0.03  # relative; the second also for TF32
_CLASSES, _FILES, _LOADED_IMAGES = 2, 64, 512
_FILE_SIZE = 375, 500  # height and width of many of ImageNet's images
_DATA, _MIX_SEED = "benchmark_pretraining", (0, 0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", type=device, help="cpu, cuda, cuda:1 (cpu)")
    parser.add_argument("--procedure", default="a3", choices=["a1", "a2", "a3"], help="(a3)")
    parser.add_argument("--model", default="resnet50", help="timm's name (resnet50)")
    parser.add_argument("--train-size", type=int, default=0, help="pixels (the procedure's)")
    parser.add_argument("--batch", type=positive, default=64, help="images at a time (64)")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="of both (float32)")
    parser.add_argument("--tf32", action="store_true", help="both with TF32 on a GPU")
    parser.add_argument("--compile", action="store_true", help="both with torch.compile")
    parser.add_argument(
        "--loader-workers", type=int, default=-1, metavar="N", help="also load files"
    )


def contenders(args: argparse.Namespace) -> List[str]:
    if args.batch % 2:
        raise UserError(f"--batch is {args.batch}; images are mixed in pairs: write an even one")
    return ["timm", "ours"]


def prepare(args: argparse.Namespace, name: str) -> Prepared:
    cfg = _config(args)
    torch.manual_seed(0)
    model = Trainer.build_model(cfg)
    loss, optimizer = (_timm if name == "timm" else _ours)(model, cfg)

    def losses() -> Dict[str, torch.Tensor]:
        torch.manual_seed(1)  # for stochastic depth
        return {"loss": loss()}

    step = Step(losses, optimizer, args.device, DTYPES[args.dtype], args.tf32)
    calls = {f"a step of {args.batch} images": step}
    if args.loader_workers >= 0:
        number = max(2, _LOADED_IMAGES // args.batch)
        batches = _batches(args, name)
        calls[f"loading {number} batches"] = lambda: [next(batches) for _ in range(number)]
    return Prepared(calls, lambda: step.forward()["loss"].item())


def _config(args: argparse.Namespace, *opts: Any) -> CfgNode:
    cfg = model_zoo.get_config(f"pretrain/resnet50_rsb_{args.procedure}.yaml")
    cfg.MODEL.DEVICE, cfg.MODEL.TIMM.NAME = args.device, args.model
    cfg.MODEL.CHANNELS_LAST, cfg.MODEL.COMPILE = True, args.compile
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR = args.batch, LOW_RATE
    # timm smooths labels before the threshold, A1 after it; the work is the same.
    cfg.MODEL.CLASSIFIER.LABEL_SMOOTHING, cfg.MODEL.CLASSIFIER.SMOOTH_AFTER_THRESH = 0.0, False
    if args.train_size:
        cfg.INPUT.CLASSIFIER.TRAIN_SIZE = args.train_size
    cfg.DATALOADER.NUM_WORKERS = max(args.loader_workers, 0)
    cfg.SEED = 0
    cfg.merge_from_list(list(opts))
    return cfg


def _images_and_labels(cfg: CfgNode) -> tuple:
    size, batch = cfg.INPUT.CLASSIFIER.TRAIN_SIZE, cfg.SOLVER.IMS_PER_BATCH
    labels = np.random.default_rng(0).integers(0, cfg.MODEL.CLASSIFIER.NUM_CLASSES, batch)
    return [x["image"] for x in make_images((size, size), batch)], labels.tolist()


def _ours(model: torch.nn.Module, cfg: CfgNode) -> tuple:
    prepare_for_training(model, cfg)
    batch = [
        {"image": image, "label": label, "mix_seed": _MIX_SEED}
        for image, label in zip(*_images_and_labels(cfg))
    ]
    model.train()
    return lambda: model(batch)["loss_cls"], build_optimizer(cfg, model)


def _timm(ours: torch.nn.Module, cfg: CfgNode) -> tuple:
    keys, images, where = cfg.MODEL.CLASSIFIER, cfg.INPUT.CLASSIFIER, cfg.MODEL.DEVICE
    rate = keys.DROP_PATH_RATE or None
    model = timm.create_model(
        cfg.MODEL.TIMM.NAME, num_classes=keys.NUM_CLASSES, drop_path_rate=rate
    )
    model.load_state_dict(ours.network.state_dict())
    model.to(where, memory_format=torch.channels_last)
    decay = cfg.SOLVER.WEIGHT_DECAY
    optimizer = create_optimizer_v2(model, opt="lamb", lr=LOW_RATE, weight_decay=decay)
    network = torch.compile(model) if cfg.MODEL.COMPILE else model
    mixup = Mixup(
        mixup_alpha=images.MIXUP_ALPHA,
        cutmix_alpha=images.CUTMIX_ALPHA,
        label_smoothing=0.0,
        num_classes=keys.NUM_CLASSES,
    )
    criterion = BinaryCrossEntropy(target_threshold=keys.TARGET_THRESH)
    mean, std = (
        torch.tensor(values, device=where).view(1, 3, 1, 1)
        for values in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    )
    x, y = _images_and_labels(cfg)
    x, y = torch.stack(x), torch.tensor(y)

    def loss() -> torch.Tensor:
        pixels = x.to(where, non_blocking=True).float().sub_(mean).div_(std)
        np.random.seed(np.random.SeedSequence(_MIX_SEED).generate_state(4))
        pixels, targets = mixup(pixels, y.to(where, non_blocking=True))
        return criterion(network(pixels.contiguous(memory_format=torch.channels_last)), targets)

    network.train()
    return loss, optimizer


def _batches(args: argparse.Namespace, name: str) -> Iterator[Any]:
    """Yield batches of the same JPEG files from one of the two loaders."""
    with tempfile.TemporaryDirectory() as folder:
        for label in range(_CLASSES):
            os.mkdir(os.path.join(folder, str(label)))
            number = max(_FILES, args.batch) // _CLASSES
            write_images(os.path.join(folder, str(label), "{}.jpg"), _FILE_SIZE, number)
        cfg = _config(
            args,
            *("DATASETS.IMAGE_FOLDER", [[_DATA, folder]], "DATASETS.TRAIN", (_DATA,)),
            *("DATASETS.TEST", (), "MODEL.CLASSIFIER.NUM_CLASSES", _CLASSES),
        )
        if name == "ours":
            if _DATA in DatasetCatalog:
                DatasetCatalog.remove(_DATA)
            register_image_folders(cfg)
            yield from build_train_loader(cfg)
        keys, workers = cfg.INPUT.CLASSIFIER, cfg.DATALOADER.NUM_WORKERS
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
            num_workers=workers,
            persistent_workers=workers > 0,
            device=torch.device(cfg.MODEL.DEVICE),
        ).loader
        while True:
            yield from loader


def check(args: argparse.Namespace, results: Dict[str, float]) -> str:
    difference = abs(results["ours"] / results["timm"] - 1)
    is_low = args.dtype != "float32" or args.tf32
    text = f"loss before the first step {results['timm']:.6f}, ours within {difference:.1e}"
    return verdict(difference <= (LOSS_TOLERANCE_LOW if is_low else LOSS_TOLERANCE), text)
