"""Which modules read which keys of Detectron2's config, in models of each kind and a training."""

import pickle
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
from detectron2.config import get_cfg
from detectron2.engine import default_setup
from detectron2.modeling import GeneralizedRCNNWithTTA, build_model

from rsb_d2 import Trainer, UserError, add_rsb_config
from rsb_d2.addons.workbench.sample import CLASS_NAMES, make_sample_data
from rsb_d2.data import register_coco_json
from rsb_d2.model_zoo import with_rsb_backbone
from tests.helpers.recorded_config import Reads, keys_of, recorded
from tests.helpers.zoo_model import small_config

# One of each kind of model, on a smaller network.
MODELS = [
    "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
    "COCO-Detection/rpn_R_50_FPN_1x.yaml",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_1x.yaml",
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml",
    "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml",
    "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
]
# What is off by default, so that it is read.
SWITCHED_ON = [
    *("SOLVER.CLIP_GRADIENTS.ENABLED", True, "INPUT.CROP.ENABLED", True),
    *("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"),
    *("MODEL.RESNETS.NORM", "BN", "TEST.PRECISE_BN.ENABLED", True),
    *("TEST.PRECISE_BN.NUM_ITER", 1),
]


def stock_keys():
    """All keys of Detectron2's default config."""
    return list(keys_of(get_cfg()))


def who_reads(folder):
    """For each key of Detectron2, the modules that have read it.

    Args:
        folder (Path): an empty one, for sample data and outputs.
    """
    reads = Reads()
    for name in MODELS:
        cfg = small_config(name)
        add_rsb_config(cfg)
        cfg.MODEL.TIMM.NAME = "resnet18"
        cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 8
        build_model(recorded(with_rsb_backbone(cfg), reads))
    _read_in_training(folder, reads)
    return {key: reads.modules.get(key, set()) for key in stock_keys()}


def _read_in_training(folder, reads):
    cfg = small_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
    add_rsb_config(cfg)
    make_sample_data(str(folder / "sample"), num_train=2, num_val=1, image_size=64)
    annotations = folder / "sample" / "annotations"
    cfg.DATASETS.COCO_JSON = [
        [f"read_{part}", str(annotations / f"{part}.json"), str(folder / "sample" / part)]
        for part in ("train", "val")
    ]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("read_train",), ("read_val",)
    cfg.merge_from_list(
        [
            *("MODEL.TIMM.NAME", "resnet18", "MODEL.BACKBONE.FREEZE_AT", 0, "MODEL.WEIGHTS", ""),
            *("MODEL.ROI_BOX_HEAD.FC_DIM", 8, "MODEL.ROI_HEADS.NUM_CLASSES", len(CLASS_NAMES)),
            *("INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64),
            *("DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 1, "SOLVER.MAX_ITER", 1),
            *("SOLVER.STEPS", (), "SOLVER.WARMUP_ITERS", 0, "OUTPUT_DIR", str(folder / "output")),
            *("TEST.EVAL_PERIOD", 1, "SOLVER.BEST_METRIC", "", *SWITCHED_ON),
        ]
    )
    with_rsb_backbone(cfg)
    register_coco_json(cfg)
    cfg = recorded(cfg, reads)
    default_setup(cfg, SimpleNamespace(opts=[], eval_only=False))
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    GeneralizedRCNNWithTTA(cfg, trainer.model.eval())
    _read_with_proposals(folder, cfg)
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "norm"
    optimizer = Trainer.build_optimizer(cfg, trainer.model)
    sum(p.sum() for p in trainer.model.parameters()).backward()
    optimizer.step()
    cfg.MODEL.KEYPOINT_ON = True
    with suppress(AssertionError, UserError):  # the sample data has none
        Trainer.build_train_loader(cfg)
    for scheduler in ("WarmupCosineLR", "WarmupStepWithFixedGammaLR"):
        cfg.SOLVER.LR_SCHEDULER_NAME = scheduler
        with suppress(ValueError):  # Detectron2 0.6 does not have the second one
            Trainer.build_lr_scheduler(cfg, trainer.optimizer)


def _read_with_proposals(folder, cfg):
    path = folder / "proposals.pkl"
    ids, box = list(range(10)), np.array([[0.0, 0.0, 9.0, 9.0]], np.float32)
    scores = [np.ones(1, np.float32)] * len(ids)
    content = dict(ids=ids, boxes=[box] * len(ids), objectness_logits=scores, bbox_mode=0)
    path.write_bytes(pickle.dumps(content))
    cfg.MODEL.LOAD_PROPOSALS = True
    cfg.DATASETS.PROPOSAL_FILES_TRAIN = cfg.DATASETS.PROPOSAL_FILES_TEST = (str(path),)
    for loader in (Trainer.build_train_loader(cfg), Trainer.build_test_loader(cfg, "read_val")):
        (image, *_) = next(iter(loader))
        assert len(image["proposals"]) == 1
