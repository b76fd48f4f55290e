"""Made-up outputs of a model on a registered data set, and their evaluation."""

import copy

import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances

from rsb_d2 import add_rsb_config
from rsb_d2.evaluation import build_evaluator
from tests.helpers.data.layouts import HEIGHT, WIDTH


def evaluate(name, outputs, folder=None):
    """Figures of outputs, a dict of what a model gives by the name of the image file."""
    cfg = get_cfg()
    add_rsb_config(cfg)
    evaluator = build_evaluator(cfg, name, None if folder is None else str(folder))
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        # Some evaluators change what they are given.
        evaluator.process([record], [copy.deepcopy(outputs[record["file_name"]])])
    return evaluator.evaluate()


def jittered(record, num_classes, seed, with_masks=True):
    """Detections near the objects of a record, some of a wrong class, and some of nothing."""
    rng = np.random.default_rng([seed, *record["file_name"].encode()[-12:]])
    boxes, classes = [], []
    for annotation in record["annotations"] * 2:
        x0, y0, x1, y1 = annotation["bbox"]
        if annotation["bbox_mode"] == 1:  # XYWH
            x1, y1 = x0 + x1, y0 + y1
        box = np.array([x0, y0, x1, y1]) + rng.normal(0, 2.5, 4)
        if rng.random() < 0.15:
            box = rng.uniform(0, 60, 4)
            box[2:] += box[:2] + 5
        boxes.append(box.clip(0, [WIDTH, HEIGHT] * 2))
        is_wrong = rng.random() < 0.2
        classes.append(rng.integers(num_classes) if is_wrong else annotation["category_id"])
    found = Instances((HEIGHT, WIDTH))
    found.pred_boxes = Boxes(torch.as_tensor(np.stack(boxes), dtype=torch.float32))
    found.scores = torch.as_tensor(rng.uniform(0.05, 1, len(boxes)), dtype=torch.float32)
    found.pred_classes = torch.as_tensor(np.array(classes, dtype=np.int64))
    if with_masks:
        masks = torch.zeros(len(boxes), HEIGHT, WIDTH, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, found.pred_boxes.tensor.round().int().tolist()):
            mask[y0:y1, x0:x1] = True
        found.pred_masks = masks
    return {"instances": found}
