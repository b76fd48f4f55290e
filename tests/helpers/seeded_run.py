"""The OUTPUT_DIR of a training that never was: seeded weights that detect something."""

import numpy as np
import torch
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager

from rsb_d2 import Checkpointer
from rsb_d2.config.loading import load_config
from rsb_d2.model_zoo import get_config_file

CONFIGS = {
    "faster": "frcnn_rsb_1x",
    "mask": "mask_rcnn_rsb_1x",
    "cascade": "cascade_mask_rcnn_rsb_1x",
    "retinanet": "retinanet_rsb_1x",
}
CLASSES = ["circle", "square", "triangle", "star", "cross", "crescent"]
IDS = [1, 2, 3, 5, 8, 13]

# Of the layers whose outputs are logits or box deltas; all others keep the scale of their input.
_STD = {
    "rpn_head.objectness_logits": 0.1,
    "rpn_head.anchor_deltas": 0.003,
    "box_predictor.cls_score": 0.15,
    "box_predictor.bbox_pred": 0.02,
    "mask_head.predictor": 0.1,
    "head.cls_score": 0.05,
    "head.bbox_pred": 0.003,
}

SMALL = [
    *("MODEL.TIMM.NAME", "resnet18", "MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"),
    *("MODEL.FPN.OUT_CHANNELS", "32", "MODEL.ROI_BOX_HEAD.FC_DIM", "32"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "16", "MODEL.ROI_BOX_HEAD.CONV_DIM", "32"),
    *("MODEL.ROI_HEADS.NUM_CLASSES", "6", "MODEL.RETINANET.NUM_CLASSES", "6"),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", "100", "MODEL.RPN.PRE_NMS_TOPK_TEST", "300"),
    *("INPUT.MIN_SIZE_TEST", "96", "INPUT.MAX_SIZE_TEST", "160"),
    *("DATASETS.CLASS_NAMES", str(CLASSES), "DATASETS.CLASS_IDS", str(IDS)),
    *("DATASETS.TEST", "()", "DATASETS.TRAIN", "()"),
]


def make_seeded_config(kind, *opts):
    return load_config(get_config_file(CONFIGS[kind]), [*SMALL, *opts])


def make_seeded_model(cfg, seed=0):
    """A detector whose scores are spread over 0 ... 1, in evaluation mode.

    The numbers are NumPy's, which are the same in all versions of torch.
    """
    model = build_model(cfg).eval()
    rng = np.random.default_rng(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:  # no norm and no bias
            layer = ".".join(name.split(".")[-3:-1])
            std = _STD.get(layer, (2 / parameter[0].numel()) ** 0.5)
            values = rng.normal(0, std, parameter.shape)
            parameter.data.copy_(torch.from_numpy(values))
    return model


def make_seeded_run(folder, kind, *opts):
    """Write ``config.yaml`` and ``model_final.pth``; returns the config and the model."""
    cfg = make_seeded_config(kind, *opts)
    model = make_seeded_model(cfg)
    PathManager.mkdirs(str(folder))
    (folder / "config.yaml").write_text(cfg.dump())
    Checkpointer(model, str(folder)).save("model_final", class_names=CLASSES, class_ids=IDS)
    return cfg, model
