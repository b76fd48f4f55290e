"""Stand-ins for other Detectron2 projects, in the names and keys that they have.

Of Detic (detic/config.py and detic/modeling/backbone/timm.py), Mask2Former (mask2former/config.py)
and Detectron2's own YOLOX-like averages; what they build is made small.
"""

from detectron2.config import CfgNode as CN
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, Backbone
from torch import nn


class DeticBackbone(Backbone):
    """In place of Detic's class ``TIMM``."""

    def __init__(self, base_name):
        super().__init__()
        self.base_name = base_name
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)

    def output_shape(self):
        return {"layer3": ShapeSpec(channels=4, stride=2)}

    def forward(self, x):
        return {"layer3": self.conv(x)}


def register_detic():
    """What importing Detic does to the registry."""

    @BACKBONE_REGISTRY.register()
    def build_timm_backbone(cfg, input_shape):
        return DeticBackbone(cfg.MODEL.TIMM.BASE_NAME)

    return build_timm_backbone


def register_image_classifier():
    """What importing a project with an ``ImageClassifier`` of its own does."""

    @META_ARCH_REGISTRY.register()
    class ImageClassifier(nn.Module):
        def __init__(self, cfg):
            super().__init__()
            self.cfg = cfg

    return ImageClassifier


def add_detic_config(cfg):
    cfg.SOLVER.OPTIMIZER = "SGD"
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0
    cfg.MODEL.TIMM = CN()
    cfg.MODEL.TIMM.BASE_NAME = "resnet50"
    cfg.MODEL.TIMM.OUT_LEVELS = (3, 4, 5)
    cfg.MODEL.TIMM.NORM = "FrozenBN"
    cfg.MODEL.TIMM.FREEZE_AT = 0
    cfg.MODEL.TIMM.PRETRAINED = False


def add_maskformer2_config(cfg):
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"


def add_model_ema_configs(cfg):
    cfg.MODEL_EMA = CN()
    cfg.MODEL_EMA.ENABLED = False
    cfg.MODEL_EMA.DECAY = 0.999
    cfg.MODEL_EMA.DEVICE = ""
    cfg.MODEL_EMA.USE_EMA_WEIGHTS_FOR_EVAL_ONLY = False
