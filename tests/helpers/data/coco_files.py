"""COCO's annotation files of three images, registered, and their evaluation."""

import contextlib
import io

import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances

from rsb_d2 import add_rsb_config
from rsb_d2.data import register_coco_json

WIDTH, HEIGHT = 100, 80


def box_polygon(x, y, w, h):
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def annotation(id, image_id, category_id, bbox, **others):
    record = dict(id=id, image_id=image_id, category_id=category_id, bbox=bbox, iscrowd=0)
    record.update(area=bbox[2] * bbox[3], segmentation=[box_polygon(*bbox)], **others)
    return record


def coco_content():
    """Three images, two categories with ids that have gaps and are not in order."""
    return dict(
        images=[dict(id=i, file_name=f"{i}.jpg", width=WIDTH, height=HEIGHT) for i in (10, 20, 30)],
        categories=[dict(id=7, name="dog"), dict(id=3, name="cat")],
        annotations=[
            annotation(1, 10, 7, [10, 10, 30, 20]),
            annotation(2, 10, 3, [50, 30, 40, 40]),
            annotation(3, 20, 3, [0, 0, 100, 80]),
            annotation(4, 20, 7, [5, 5, 12, 12]),
        ],
    )


def make_cfg(*entries, train=(), test=(), masks=False, num_classes=2):
    cfg = get_cfg()
    add_rsb_config(cfg)
    cfg.DATASETS.COCO_JSON = list(entries)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = tuple(train), tuple(test)
    cfg.MODEL.MASK_ON = masks
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    return cfg


def register(entry, **options):
    register_coco_json(make_cfg(entry, train=[entry[0]], **options))
    return DatasetCatalog.get(entry[0])


def annotations_of(dicts):
    return [a for d in dicts for a in d["annotations"]]


def evaluate_perfect_predictions(name):
    """Return the stock evaluator's results for predictions that are the ground truth."""
    evaluator = COCOEvaluator(name, ("bbox",), False, use_fast_impl=False)
    evaluator.reset()
    for d in DatasetCatalog.get(name):
        objects = [a for a in d["annotations"] if not a.get("iscrowd", 0)]
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]
        instances = Instances((d["height"], d["width"]))
        instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        instances.scores = torch.ones(len(objects))
        instances.pred_classes = torch.tensor([a["category_id"] for a in objects]).long()
        evaluator.process([d], [{"instances": instances}])
    with contextlib.redirect_stdout(io.StringIO()):
        return evaluator.evaluate()["bbox"]


def edit(index, **fields):
    def edit_(content):
        content["annotations"][index].update(fields)

    return edit_
