"""A small training on the sample data whose evaluations are scripted."""

import torch

from rsb_d2 import Trainer
from rsb_d2.addons.workbench.sample import CLASS_NAMES
from rsb_d2.data import register_coco_json
from tests.helpers.seeded_run import make_seeded_config


def data_opts(data):
    entries = [
        [f"own_{data.parent.name}_{s}", f"{data}/annotations/{s}.json", f"{data}/{s}"]
        for s in ("train", "val")
    ]
    return [
        *("DATASETS.COCO_JSON", str(entries)),
        *("DATASETS.TRAIN", str((entries[0][0],)), "DATASETS.TEST", str((entries[1][0],))),
    ]


NUM_CLASSES = str(len(CLASS_NAMES))
CLASS_IDS = list(range(1, len(CLASS_NAMES) + 1))
SMALL = [
    # Checkpoints are a third as large.
    *("MODEL.TIMM.NAME", "resnet10t", "SOLVER.OPTIMIZER", "SGD"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "DATALOADER.NUM_WORKERS", "0"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "6", "TEST.EVAL_PERIOD", "1"),
    *("MODEL.BACKBONE.FREEZE_AT", "0", "MODEL.TIMM.NORM_EVAL", "False", "SEED", "1"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16", "MODEL.ROI_HEADS.NUM_CLASSES", NUM_CLASSES),
    *("MODEL.RETINANET.NUM_CLASSES", NUM_CLASSES),
]


def make_config(data, *opts, kind="faster"):
    cfg = make_seeded_config(kind, *data_opts(data), *SMALL, *opts)
    register_coco_json(cfg)
    return cfg


class ScriptedTrainer(Trainer):
    """A trainer whose evaluations return ``scores``, one after the other.

    A score is the AP of boxes, or a dict of metrics.
    """

    scores = ()

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        score = cls.scores.pop(0)
        return {"bbox": score if isinstance(score, dict) else {"AP": score}}


def train(cfg, scores, resume=False):
    ScriptedTrainer.scores = list(scores)
    trainer = ScriptedTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    assert not ScriptedTrainer.scores
    return trainer


def load(path):
    return torch.load(path, weights_only=True)
