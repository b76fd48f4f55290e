"""A short training with the switches for speed, on the sample data."""

import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.utils.env import seed_all_rng

from rsb_d2 import Trainer
from rsb_d2.config.loading import load_config
from rsb_d2.data import register_coco_json
from rsb_d2.model_zoo import get_config_file

ITERATIONS = 50


SMALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.TIMM.NAME", "resnet10t"),
    *("MODEL.TIMM.NORM_EVAL", "True", "MODEL.FPN.OUT_CHANNELS", "16"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "64", "MODEL.RPN.PRE_NMS_TOPK_TRAIN", "100"),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "30", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", str(ITERATIONS), "SOLVER.BASE_LR", "5e-4"),
    *("SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.WARMUP_ITERS", "0"),
    *("SOLVER.STEPS", "(1000,)"),
    *("TEST.EVAL_PERIOD", "0", "INPUT.MIN_SIZE_TRAIN", "(64,)", "DATASETS.TEST", "()"),
    *("SOLVER.CHECKPOINT_PERIOD", "1000", "INPUT.RANDOM_FLIP", "none"),
]
PLAIN = ["MODEL.CHANNELS_LAST", "False", "MODEL.TIMM.FOLD_NORM", "False"]


class SwitchedTrainer(Trainer):
    """A trainer whose optimizer can be the plain loop over parameters."""

    plain_optimizer = False

    @classmethod
    def build_optimizer(cls, cfg, model):
        optimizer = super().build_optimizer(cfg, model)
        assert all(group["fused"] for group in optimizer.param_groups)
        if cls.plain_optimizer:
            for group in optimizer.param_groups:
                group["fused"] = group["foreach"] = False
        return optimizer


def make_config(folder, *opts):
    data = [
        [f"rsb_sample_{s}", f"{folder}/data/annotations/{s}.json", f"{folder}/data/{s}"]
        for s in ("train", "val")
    ]
    cfg = load_config(get_config_file("frcnn_rsb_sample"), [*SMALL, *PLAIN, *opts])
    cfg.DATASETS.COCO_JSON = data
    cfg.OUTPUT_DIR = str(folder / "output")
    (folder / "output").mkdir(exist_ok=True)
    if "rsb_sample_train" not in DatasetCatalog:
        register_coco_json(cfg, eval_only=False)
    return cfg


def train(folder, *opts, plain_optimizer=False, resume=False):
    """The trainer after a run, and the total losses of its iterations."""
    cfg = make_config(folder, *opts)
    seed_all_rng(1)
    kind = type("T", (SwitchedTrainer,), {"plain_optimizer": plain_optimizer})
    trainer = kind(cfg)
    trainer.resume_or_load(resume)
    trainer.train()
    return trainer, np.array([v for v, _ in trainer.storage.history("total_loss").values()])
