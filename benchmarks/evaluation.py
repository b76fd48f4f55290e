"""COCO evaluation: Detectron2's evaluator with pycocotools or its own C++, and this project's.

`evaluate()` of each evaluator is timed, from the detections in memory to the table of metrics. The
ground truth and the detections are made from a seed, with sizes and numbers of objects as in COCO's
val2017. The twelve metrics of boxes and of masks must agree.
"""

import argparse
import contextlib
import functools
import io
import itertools
import json
import os
import tempfile
from typing import Any, Dict, Iterator, List, Tuple

import numpy as np
import pycocotools.mask as mask_util
from detectron2 import evaluation as stock
from detectron2.data import MetadataCatalog

from rsb_d2.evaluation import COCOEvaluator

from .harness import Prepared, image_size, positive, verdict

TOLERANCE = 1e-12  # of a metric from 0 to 1
# Objects in an image: 36,781 in the 5,000 images of val2017, of which 1.2 % are crowds.
_OBJECTS, _CROWDS = 7.36, 0.012
_CLASSES_OF_IMAGE = 5  # at most
_CORNERS = 24  # of a polygon
_TASKS = {"boxes": "bbox", "masks": "segm"}
_PYCOCOTOOLS, _COMPILED, _OURS = "pycocotools", "COCOeval_opt", "ours"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=positive, default=5000, help="(5000)")
    parser.add_argument("--detections", type=positive, default=100, help="in an image (100)")
    parser.add_argument("--classes", type=positive, default=80, help="(80)")
    parser.add_argument("--image-size", default="480x640", type=image_size, help="HxW (480x640)")


def contenders(args: argparse.Namespace) -> List[str]:
    compiled = getattr(stock.coco_evaluation.COCOeval_opt, "__name__", "") == "COCOeval_opt"
    return [_PYCOCOTOOLS, *([_COMPILED] if compiled else []), _OURS]


def prepare(args: argparse.Namespace, name: str) -> Prepared:
    # Each has its own records, because pycocotools writes into them.
    truth, results = json.loads(
        _make_text(args.images, args.detections, args.classes, args.image_size)
    )
    kind = COCOEvaluator if name == _OURS else stock.COCOEvaluator
    stats = {}

    class Recorded(kind):
        def _derive_coco_results(self, coco_eval, iou_type, *args, **kwargs):
            stats[iou_type] = np.array(coco_eval.stats[:12])
            return super()._derive_coco_results(coco_eval, iou_type, *args, **kwargs)

    data = f"benchmark_evaluation_{name}"
    MetadataCatalog.pop(data, None)
    quiet = contextlib.redirect_stdout(io.StringIO())
    with tempfile.TemporaryDirectory() as folder, quiet:
        path = os.path.join(folder, "truth.json")
        with open(path, "w") as f:
            json.dump(truth, f)
        classes = [c["name"] for c in truth["categories"]]
        MetadataCatalog.get(data).set(json_file=path, thing_classes=classes)
        evaluator = Recorded(data, distributed=False, use_fast_impl=name == _COMPILED)
    by_image = itertools.groupby(results, key=lambda r: r["image_id"])
    predictions = [{"image_id": i, "instances": list(rs)} for i, rs in by_image]

    def evaluate(task: str) -> None:
        evaluator._tasks, evaluator._predictions = (task,), predictions
        with quiet:
            evaluator.evaluate()

    calls = {row: lambda task=task: evaluate(task) for row, task in _TASKS.items()}
    return Prepared(calls, lambda: [call() for call in calls.values()] and stats)


@functools.lru_cache(maxsize=1)
def _make_text(*args: Any) -> str:
    return json.dumps(make_detections(*args))


def check(args: argparse.Namespace, results: Dict[str, Dict[str, np.ndarray]]) -> str:
    reference = results[_PYCOCOTOOLS]
    difference = max(np.abs(x[t] - reference[t]).max() for x in results.values() for t in x)
    aps = " and ".join(f"{100 * reference[task][0]:.2f}" for task in _TASKS.values())
    text = f"twelve metrics of boxes and of masks within {difference:.0e}; AP {aps}"
    return verdict(difference <= TOLERANCE and reference["bbox"][0] > 0, text)


def make_detections(
    num_images: int,
    num_detections: int,
    num_classes: int,
    size: Tuple[int, int] = (480, 640),
    seed: int = 0,
) -> Tuple[Dict[str, Any], List[Dict[str, Any]]]:
    """Make ground truth and detections with boxes and masks, in COCO's formats.

    Half of the detections are boxes of objects, shifted, 15 % of them with a random class; the
    others have random boxes and classes. The category ids are 1, 2, 3 and so on.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    truth = {
        "info": {},
        "images": [
            {"id": i, "height": height, "width": width, "file_name": f"{i}.jpg"}
            for i in range(1, num_images + 1)
        ],
        "annotations": [],
        "categories": [{"id": c, "name": f"class {c}"} for c in range(1, num_classes + 1)],
    }
    results = []
    for image in truth["images"]:
        classes = rng.integers(1, num_classes + 1, _CLASSES_OF_IMAGE)
        objects = _random_boxes(rng, rng.poisson(_OBJECTS), size)
        labels = rng.choice(classes, len(objects))
        for box, label in zip(objects.tolist(), labels.tolist()):
            mask, crowd = _polygon(rng, box, size), int(rng.random() < _CROWDS)
            rle = mask_util.merge(mask_util.frPyObjects([mask], height, width))
            area, segmentation = float(mask_util.area(rle)), _text(rle) if crowd else [mask]
            annotation = {"id": len(truth["annotations"]) + 1, "area": area, "iscrowd": crowd}
            annotation.update(_entry(image, label, box), segmentation=segmentation)
            truth["annotations"].append(annotation)
        found = _detect(rng, objects, labels, num_detections, num_classes, classes, size)
        for box, label, score in found:
            rle = mask_util.frPyObjects([_polygon(rng, box, size)], height, width)[0]
            entry = _entry(image, label, box)
            results.append({**entry, "score": score, "segmentation": _text(rle)})
    return truth, results


def _entry(image: Dict[str, Any], label: int, box: List[float]) -> Dict[str, Any]:
    return {"image_id": image["id"], "category_id": label, "bbox": box}


def _random_boxes(rng: np.random.Generator, number: int, size: Tuple[int, int]) -> np.ndarray:
    """Return boxes (x, y, w, h) from 8 pixels to 5 / 8 of the image's height."""
    height, width = size
    side = np.exp(rng.uniform(np.log(8), np.log(height * 5 / 8), number))
    aspect = np.exp(rng.normal(0, 0.4, number))
    w, h = np.minimum(side * aspect, width - 2), np.minimum(side / aspect, height - 2)
    x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
    return np.stack([x, y, w, h], axis=1).round(2)


def _detect(rng, objects, labels, number, num_classes, classes, size) -> Iterator[tuple]:
    height, width = size
    boxes, scores = _random_boxes(rng, number, size), rng.beta(1, 6, number)
    any_class = rng.integers(1, num_classes + 1, number)
    found = np.where(rng.random(number) < 0.4, rng.choice(classes, number), any_class)
    if len(objects):
        which, fits = rng.integers(len(objects), size=number), rng.random(number) < 0.5
        near = objects[which] + rng.normal(0, 0.12, (number, 4)) * objects[which][:, [2, 3, 2, 3]]
        boxes = np.where(fits[:, None], near, boxes)
        scores = np.where(fits, rng.beta(2, 2, number), scores)
        found = np.where(fits & (rng.random(number) < 0.85), labels[which], found)
    corner = np.clip(boxes[:, :2], 0, [width - 4, height - 4])
    far = np.clip(corner + boxes[:, 2:], corner + 2, [width, height])
    boxes = np.concatenate([corner, far - corner], axis=1)
    return zip(boxes.tolist(), found.tolist(), scores.astype(np.float32).astype(float).tolist())


def _polygon(rng: np.random.Generator, box: List[float], size: Tuple[int, int]) -> List[float]:
    """Return an uneven ellipse in a box."""
    x, y, w, h = box
    angle = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
    radius = 1 + 0.1 * rng.normal(size=_CORNERS)
    corners = np.stack([w * (1 + radius * np.cos(angle)), h * (1 + radius * np.sin(angle))], axis=1)
    return np.clip(corners / 2 + [x, y], 0, [size[1], size[0]]).round(2).ravel().tolist()


def _text(rle: Dict[str, Any]) -> Dict[str, Any]:
    return {"size": rle["size"], "counts": rle["counts"].decode()}
