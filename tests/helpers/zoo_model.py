"""Detectron2's zoo: its YAML files, a model of one made small to run, and images for it."""

from pathlib import Path

import numpy as np
import torch
from detectron2 import model_zoo
from detectron2.structures import Boxes, Instances, Keypoints, PolygonMasks

ROOT = Path(model_zoo.get_config_file("Base-RCNN-FPN.yaml")).parent
NAMES = sorted(
    str(path.relative_to(ROOT))
    for path in ROOT.glob("*/*.yaml")
    if path.parent.name != "quick_schedules"
)

# How much is computed of a few regions is no part of the model.
FEW = [
    *("MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 8),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", 8, "MODEL.RPN.POST_NMS_TOPK_TEST", 8),
    *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", 50, "MODEL.RPN.PRE_NMS_TOPK_TEST", 50),
    *("TEST.DETECTIONS_PER_IMAGE", 5),
]


def small_config(name):
    """A config of Detectron2's zoo as it is there, but for how many regions are computed."""
    cfg = model_zoo.get_config(name)
    cfg.merge_from_list(FEW)
    return cfg


def make_inputs(cfg, size=(96, 128), training=True, seed=0):
    """Two images with two objects each, and what else the config's model is trained on."""
    height, width = size
    rng = np.random.default_rng(seed)
    boxes = np.array([[8, 8, 60, 70], [40, 20, 120, 90]], np.float32)
    inputs = []
    for _ in range(2):
        image = rng.integers(0, 256, (3, height, width))
        record = {"image": torch.as_tensor(image), "height": height, "width": width}
        if cfg.MODEL.LOAD_PROPOSALS:
            proposals = Instances(size)
            proposals.proposal_boxes = Boxes(torch.as_tensor(boxes + 3))
            proposals.objectness_logits = torch.tensor([2.0, 1.0])
            record["proposals"] = proposals
        if training:
            record["instances"] = _objects(cfg, size, boxes)
            stuff = rng.integers(0, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, size)
            record["sem_seg"] = torch.as_tensor(stuff)
        inputs.append(record)
    return inputs


def _objects(cfg, size, boxes):
    objects = Instances(size)
    objects.gt_boxes = Boxes(torch.as_tensor(boxes))
    objects.gt_classes = torch.tensor([0, cfg.MODEL.ROI_HEADS.NUM_CLASSES - 1])
    corners = [[x0, y0, x1, y0, x1, y1, x0, y1] for x0, y0, x1, y1 in boxes.tolist()]
    objects.gt_masks = PolygonMasks([[np.array(c)] for c in corners])
    points = boxes[:, None, :2] + np.linspace(0.1, 0.9, 17)[:, None] * (
        boxes[:, None, 2:] - boxes[:, None, :2]
    )
    visible = np.full((2, 17, 1), 2)
    objects.gt_keypoints = Keypoints(np.concatenate([points, visible], axis=2))
    return objects
