"""A training loader of made-up records, whose content is known."""

import itertools
import random

import numpy as np
import torch
from detectron2.config import get_cfg

from rsb_d2 import add_rsb_config
from rsb_d2.data.loader import TrainLoader, build_sampler

SEED = 7


def make_records(count=23):
    """Every third image is high, and the categories are of different frequency."""
    return [
        {
            "file_name": f"{i}.jpg",
            "image_id": i,
            "width": 3 + i % 3,
            "height": 4,
            "annotations": [{"category_id": 0 if i % 5 else 1, "iscrowd": 0}],
        }
        for i in range(count)
    ]


def make_cfg(**dataloader):
    cfg = get_cfg()
    add_rsb_config(cfg)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.4
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.6
    cfg.DATALOADER.update(dataloader)
    return cfg


def same(record):
    return record


def make_loader(mapper=same, records=None, cfg=None, **kwargs):
    records = make_records() if records is None else records
    cfg = cfg or make_cfg()
    arguments = {"total_batch_size": 4, "seed": SEED, **kwargs}
    return TrainLoader(records, mapper, lambda s: build_sampler(cfg, records, s), **arguments)


def ids(batches, count):
    return [[image["image_id"] for image in b] for b in itertools.islice(batches, count)]


def noisy(record):
    """An augmentation that draws from all that augmentations draw from."""
    noise = (random.random(), float(np.random.rand()), float(torch.rand(())))
    return {**record, "noise": noise}


def contents(batches, count):
    return [[(i["image_id"], i["noise"]) for i in b] for b in itertools.islice(batches, count)]
