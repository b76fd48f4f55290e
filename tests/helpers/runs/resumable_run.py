"""A small training that is stopped and goes on, in this process or in one of its own."""

import os
import subprocess

import torch
from detectron2.engine import default_argument_parser

from rsb_d2 import Trainer
from rsb_d2.config.setup import setup
from tests.helpers import warm_python
from tests.helpers.kill_and_resume import SMALL
from tests.helpers.paths import CONFIGS


def run(folder, program, *arguments, **kwargs):
    return subprocess.run(
        [str(warm_python.path()), str(program), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        **kwargs,
    )


SPLITS = ("train", "val")


def make_config(folder, *opts, resume=False, config="frcnn_rsb_sample.yaml"):
    data = folder / "datasets" / "rsb_sample"
    names = [[f"rsb_sample_{s}", f"{data}/annotations/{s}.json", f"{data}/{s}"] for s in SPLITS]
    return setup(
        default_argument_parser().parse_args(
            [
                *("--config-file", str(CONFIGS / config)),
                *(["--resume"] if resume else []),
                *(*SMALL, "DATASETS.COCO_JSON", str(names), "TEST.VAL_LOSS", "False"),
                *("MODEL.DEVICE", "cpu", "TEST.EVAL_PERIOD", "0"),
                *(*opts, "DATASETS.TEST", "()"),
            ]
        )
    )


def train(cfg, resume=False, cls=Trainer):
    trainer = cls(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def load(path):
    return torch.load(path, weights_only=True)
