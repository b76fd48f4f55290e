"""Shared parts of the LazyConfigs: backbone, and the published recipe on Detectron2's 1x schedule.

The values are those of ../Base-RCNN-FPN-RSB.yaml, which names their sources.
"""

import detectron2.data.transforms as T
import torch
from detectron2.config import LazyCall as L
from detectron2.model_zoo import get_config
from detectron2.solver.build import get_default_optimizer_params

from rsb_d2.modeling import CheckedTimmBackbone

bottom_up = L(CheckedTimmBackbone)(
    name="resnet50.a1_in1k",
    out_features=["res2", "res3", "res4", "res5"],
    norm="BN",
    norm_eval=True,
    freeze_at=2,
    # References to the keys of `model`, the grandparent of model.backbone.bottom_up.
    pixel_mean="${...pixel_mean}",
    pixel_std="${...pixel_std}",
    input_format="${...input_format}",
)

pixels = dict(
    input_format="RGB", pixel_mean=[123.675, 116.28, 103.53], pixel_std=[58.395, 57.12, 57.375]
)

dataloader = get_config("common/data/coco.py").dataloader
dataloader.train.mapper.augmentations = [
    L(T.ResizeShortestEdge)(short_edge_length=[800], sample_style="choice", max_size=1333),
    L(T.RandomFlip)(horizontal=True),
]
# The mapper of the test images refers to this one.
dataloader.train.mapper.image_format = "${model.input_format}"

optimizer = L(torch.optim.AdamW)(
    params=L(get_default_optimizer_params)(weight_decay_norm=0.0),
    lr=0.0002,
    betas=(0.9, 0.999),
    weight_decay=0.05,
)

lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_1x
lr_multiplier.warmup_length = 500 / 90000

train = get_config("common/train.py").train
train.max_iter = 90000
train.init_checkpoint = "timm://${model.backbone.bottom_up.name}"
