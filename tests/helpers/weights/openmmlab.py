"""Stand-ins for the published detectors, with the layout of their files and what they computed."""

import json
from functools import cached_property

import numpy as np
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances

from rsb_d2 import Checkpointer, model_zoo
from tests.helpers.paths import PUBLISHED_DETECTORS
from tests.helpers.weights.standin_weights import make_image, make_state_dict

DATA = PUBLISHED_DETECTORS
CONFIGS = {
    "faster_rcnn": "frcnn_rsb_1x",
    "mask_rcnn": "mask_rcnn_rsb_1x",
    "cascade_mask_rcnn": "cascade_mask_rcnn_rsb_1x",
    "retinanet": "retinanet_rsb_1x",
}


def standin(name):
    arrays = make_state_dict(DATA / f"{name}.json")
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


def blank(name):
    """Zeros of the same names and shapes, where nothing is computed."""
    shapes = json.loads((DATA / f"{name}.json").read_text())
    return {key: torch.zeros(shape) for key, shape in shapes.items()}


def save_as_openmmlab(path, weights):
    meta = {"mmdet_version": "2.18.0", "CLASSES": ("person", "bicycle"), "epoch": 12, "iter": 87960}
    torch.save({"meta": meta, "state_dict": weights}, path)
    return str(path)


def build(name, *opts, device="cpu"):
    cfg = model_zoo.get_config(CONFIGS[name])
    cfg.merge_from_list(["MODEL.DEVICE", device, "MODEL.WEIGHTS", "", *opts])
    return build_model(cfg).eval()


class Detector:
    """A detector with its stand-in weights, and what it computes of the image."""

    def __init__(self, name, folder, device="cpu"):
        self.name, self.weights = name, standin(name)
        self.model = build(name, device=device)
        checkpointer = Checkpointer(self.model)
        checkpointer.load(save_as_openmmlab(folder / f"{name}.pth", self.weights))
        self.weights = {key: weight.to(device) for key, weight in self.weights.items()}
        self.report = checkpointer.report
        image = torch.from_numpy(make_image().transpose(2, 0, 1).copy())
        self.inputs = [{"image": image, "height": 256, "width": 320}]
        self.images = self.model.preprocess_image(self.inputs)

    @cached_property
    @torch.no_grad()
    def res(self):
        return self.model.backbone.bottom_up(self.images.tensor)

    @cached_property
    @torch.no_grad()
    def features(self):
        return self.model.backbone(self.images.tensor)

    @cached_property
    @torch.no_grad()
    def instances(self):
        return self.model(self.inputs)[0]["instances"]

    def reference(self):
        return np.load(DATA / f"{self.name}.npz")


def make_targets(masks=False, device="cpu"):
    """An image's objects: two boxes, of classes 3 and 5."""
    targets = Instances((256, 320))
    targets.gt_boxes = Boxes(torch.tensor([[40.0, 60, 150, 140], [200.0, 100, 290, 220]]))
    targets.gt_classes = torch.tensor([3, 5])
    if masks:
        bitmap = torch.zeros(2, 256, 320, dtype=torch.bool)
        bitmap[0, 60:140, 40:150] = True
        bitmap[1, 100:220, 200:290] = True
        targets.gt_masks = BitMasks(bitmap)
    return targets.to(device)
