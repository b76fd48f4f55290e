"""Complete iterations of this project's Trainer and Detectron2's DefaultTrainer: data, step, hooks.

Both train the same Faster R-CNN from the same weights on the same JPEG files with the same SGD; the
switches that make our training faster, such as `MODEL.TIMM.FOLD_NORM`, are off. The losses of the
first iterations must agree.
"""

import argparse
import tempfile
from typing import Iterable, List

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detectron2.data.samplers import TrainingSampler
from detectron2.engine import DefaultTrainer
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from rsb_d2.engine import Trainer

from .harness import Prepared, add_model_arguments, positive, verdict
from .models import our_config, seed_weights, write_images

LOSS_TOLERANCE = 1e-4  # relative, of the total loss of each of the first iterations
_COMPARED, _FILES, _DATA = 3, 64, "benchmark_trainer"


class _Stock(DefaultTrainer):
    """Detectron2's trainer, with the images in the order of the config's seed, as in ours."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable:
        sampler = TrainingSampler(len(DatasetCatalog.get(_DATA)), seed=cfg.SEED)
        return build_detection_train_loader(cfg, sampler=sampler)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser, "240x320")
    parser.add_argument("--model", default="resnet18", help="timm's name (resnet18)")
    parser.add_argument("--iterations", type=positive, default=10, help="in one call (10)")
    parser.add_argument("--loader-workers", type=int, default=0, metavar="N", help="of each (0)")


def contenders(args: argparse.Namespace) -> List[str]:
    return ["stock", "ours"]


def prepare(args: argparse.Namespace, name: str) -> Prepared:
    folder = tempfile.TemporaryDirectory()
    if _DATA not in DatasetCatalog:
        records = write_images(f"{folder.name}/{{}}.jpg", args.image_size, _FILES)
        DatasetCatalog.register(_DATA, lambda folder=folder: records)  # keeps the folder
        MetadataCatalog.get(_DATA).thing_classes = [f"class {i}" for i in range(80)]
    seed_all_rng(1)
    trainer = {"stock": _Stock, "ours": Trainer}[name](_config(args, folder.name))
    seed_weights(trainer.model)
    trainer.iter = trainer.start_iter = 0
    trainer.storage = EventStorage(0)
    with trainer.storage:
        trainer.before_train()

    def iterate(number: int) -> None:
        with trainer.storage:
            for _ in range(number):
                trainer.before_step()
                trainer.run_step()
                trainer.after_step()
                trainer.iter += 1

    def losses() -> List[float]:
        iterate(1)  # starts the loader, which draws a random number in stock
        found = []
        for seed in range(_COMPARED):
            seed_all_rng(seed)  # for the proposals that are sampled
            iterate(1)
            found.append(trainer.storage.latest()["total_loss"][0])
        return found

    row = f"{args.iterations} iterations"
    return Prepared({row: lambda folder=folder: iterate(args.iterations)}, losses)


def _config(args: argparse.Namespace, folder: str) -> CfgNode:
    cfg = our_config(args.device)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (_DATA,), ()
    cfg.DATALOADER.NUM_WORKERS = args.loader_workers
    cfg.MODEL.TIMM.NAME = args.model
    cfg.MODEL.TIMM.FOLD_NORM = cfg.MODEL.CHANNELS_LAST = False
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR = "SGD", 1e-5
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
    cfg.SOLVER.IMS_PER_BATCH = args.batch
    cfg.INPUT.MIN_SIZE_TRAIN = (min(args.image_size),)
    cfg.INPUT.MAX_SIZE_TRAIN = max(args.image_size)
    cfg.INPUT.RANDOM_FLIP = "none"  # each draws its own
    cfg.SEED, cfg.OUTPUT_DIR = 1, folder
    return cfg


def check(args: argparse.Namespace, results: dict) -> str:
    difference = max(abs(b / a - 1) for a, b in zip(results["stock"], results["ours"]))
    text = f"total losses of the first {_COMPARED} iterations within {difference:.1e}"
    return verdict(difference <= LOSS_TOLERANCE, text)
