"""COCO evaluation: Detectron2's evaluator with pycocotools or its own C++, and this project's.

What is timed is `evaluate()` of each evaluator, from the detections in memory to the table of
figures: loading the results, matching, accumulating and summing up. The ground truth and the
detections are made from a seed, with sizes and numbers of objects as in COCO's val2017. First all
twelve figures of boxes and of masks are compared.
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import tempfile
from typing import Any, Callable, Dict, Iterator, List, Tuple

import numpy as np
import pycocotools.mask as mask_util
from detectron2 import evaluation as stock
from detectron2.data import MetadataCatalog

from rsb_d2.evaluation import COCOEvaluator

from .arguments import check_at_least_one, find_size
from .profiling import peak_memory_alone
from .timing import measure, ratio

TOLERANCE = 1e-12  # of a figure in 0 ... 1

# Objects of an image: 36,781 in the 5,000 images of val2017, of which 1.2 % are crowds.
_OBJECTS, _CROWDS = 7.36, 0.012
_CLASSES_OF_IMAGE = 5  # at most
_CORNERS = 24  # of a polygon
_TASKS = {"boxes": "bbox", "masks": "segm"}
_PYCOCOTOOLS, _COMPILED, _OURS = "stock, pycocotools", "stock, COCOeval_opt", "ours"
_HAS_COMPILED = getattr(stock.coco_evaluation.COCOeval_opt, "__name__", "") == "COCOeval_opt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``tools/benchmark.py evaluation``."""
    parser.add_argument("--images", type=int, default=5000, help="how many (5000)")
    parser.add_argument("--detections", type=int, default=100, help="of an image (100)")
    parser.add_argument("--classes", type=int, default=80, help="how many (80)")
    parser.add_argument("--image-size", default="480x640", metavar="HxW", help="(480x640)")
    parser.add_argument("--profile", action="store_true", help="functions of ours by time")


def run(args: argparse.Namespace) -> Dict[str, Any]:
    """Compare and time the evaluators.

    Args:
        args (Namespace): of :func:`add_arguments`, with ``runs``.

    Returns:
        dict: as :mod:`benchmarks.report` describes it.

    Raises:
        UserError: if an option is out of its range.
    """
    check_at_least_one(args, "images", "detections", "classes")
    report = {
        "title": "COCO evaluation of boxes and masks",
        "settings": {
            "images": args.images,
            "detections of an image": args.detections,
            "classes": args.classes,
            "image size": args.image_size,
            "runs": args.runs,
        },
        "notes": [],
    }
    if not _HAS_COMPILED:
        report["notes"].append(
            "Detectron2 is installed without its C++: COCOeval_opt is absent, and not compared with"
        )
    with _evaluators(args) as evaluators:
        figures = {name: [e.figures(t) for t in _TASKS.values()] for name, e in evaluators.items()}
        report["comparison"] = _compare(figures)
        if not report["comparison"]["passed"]:
            return report
        report["rows"] = [
            {
                "what": what,
                **measure({n: e.call(task) for n, e in evaluators.items()}, args.runs, warmup=0),
            }
            for what, task in _TASKS.items()
        ]
        if args.profile:
            report["profiles"] = {
                f"ours, {what}": _profile(evaluators[_OURS].call(task))
                for what, task in _TASKS.items()
            }
        names = list(evaluators)
    report["memory"] = {name: peak_memory_alone(_prepare, args, name, calls=1) for name in names}
    if _HAS_COMPILED:
        for row in report["rows"]:
            times = ratio(row[_COMPILED], row[_OURS])
            report["notes"].append(
                f"{row['what']}, COCOeval_opt / ours: {times['median']:.2f} "
                f"({times['min']:.2f}-{times['max']:.2f})"
            )
    return report


class _Evaluator:
    """An evaluator with its detections, and the figures of its last evaluation."""

    def __init__(self, kind: type, name: str, results: List[Dict[str, Any]], **kwargs):
        outer = self

        class Recorded(kind):
            def _derive_coco_results(self, coco_eval, *args, **kwargs):
                outer.stats = np.array(coco_eval.stats[:12])
                return super()._derive_coco_results(coco_eval, *args, **kwargs)

        with contextlib.redirect_stdout(io.StringIO()):
            self.evaluator = Recorded(name, distributed=False, **kwargs)
        by_image = itertools.groupby(results, key=lambda r: r["image_id"])
        self.predictions = [{"image_id": i, "instances": list(rs)} for i, rs in by_image]
        self.stats = None

    def evaluate(self, task: str) -> None:
        self.evaluator._tasks = (task,)
        self.evaluator._predictions = self.predictions
        with contextlib.redirect_stdout(io.StringIO()):
            self.evaluator.evaluate()

    def call(self, task: str) -> Callable[[], None]:
        return lambda: self.evaluate(task)

    def figures(self, task: str) -> np.ndarray:
        self.evaluate(task)
        return self.stats


@contextlib.contextmanager
def _evaluators(args: argparse.Namespace, only: str = "") -> Iterator[Dict[str, _Evaluator]]:
    truth, results = make_detections(
        args.images, args.detections, args.classes, find_size(args.image_size)
    )
    name = "benchmark_evaluation"
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "truth.json")
        with open(path, "w") as f:
            json.dump(truth, f)
        try:
            classes = [c["name"] for c in truth["categories"]]
            MetadataCatalog.get(name).set(json_file=path, thing_classes=classes)
            kinds = {_PYCOCOTOOLS: (stock.COCOEvaluator, {"use_fast_impl": False})}
            if _HAS_COMPILED:
                kinds[_COMPILED] = (stock.COCOEvaluator, {})
            kinds[_OURS] = (COCOEvaluator, {})
            # Each with its own records, as pycocotools writes into them.
            text = json.dumps(results)
            yield {
                n: _Evaluator(kind, name, json.loads(text), **kwargs)
                for n, (kind, kwargs) in kinds.items()
                if only in ("", n)
            }
        finally:
            MetadataCatalog.remove(name)


def _compare(figures: Dict[str, List[np.ndarray]]) -> Dict[str, Any]:
    reference = figures[_PYCOCOTOOLS]
    difference = max(
        np.abs(a - b).max() for found in figures.values() for a, b in zip(reference, found)
    )
    return {
        "passed": bool(difference <= TOLERANCE and reference[0][0] > 0),
        "text": (
            f"the twelve figures of boxes and of masks within {difference:.1e} "
            f"({TOLERANCE:.0e} allowed); AP {100 * reference[0][0]:.2f} and "
            f"{100 * reference[1][0]:.2f}"
        ),
    }


def _profile(call: Callable[[], None]) -> str:
    import cProfile
    import pstats

    with cProfile.Profile() as profile:
        call()
    text = io.StringIO()
    pstats.Stats(profile, stream=text).strip_dirs().sort_stats("tottime").print_stats(12)
    return text.getvalue()


def _prepare(args: argparse.Namespace, name: str) -> Callable[[], None]:
    """A call that makes the detections, too, and so is as large as an evaluation gets."""

    def evaluate() -> None:
        with _evaluators(args, only=name) as evaluators:
            for task in _TASKS.values():
                evaluators[name].evaluate(task)

    return evaluate


def make_detections(
    num_images: int,
    num_detections: int,
    num_classes: int,
    size: Tuple[int, int] = (480, 640),
    seed: int = 0,
) -> Tuple[Dict[str, Any], List[Dict[str, Any]]]:
    """Make ground truth and detections, some of which fit, with boxes and masks.

    Half of the detections are objects' boxes, moved, three tenths of those more of any class; the
    others are anywhere and of any class.

    Args:
        num_images (int): how many.
        num_detections (int): of each image.
        num_classes (int): their category ids are 1, 2, 3 and so on.
        size (tuple[int, int]): height and width in pixels.
        seed (int): of the random numbers.

    Returns:
        dict, list[dict]: in COCO's format of annotations and of results.
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
            annotation = {
                "id": len(truth["annotations"]) + 1,
                "image_id": image["id"],
                "category_id": label,
                "bbox": box,
                "area": float(mask_util.area(rle)),
                "iscrowd": crowd,
                "segmentation": _text(rle) if crowd else [mask],
            }
            truth["annotations"].append(annotation)
        boxes, found, scores = _detections(
            rng, objects, labels, num_detections, num_classes, classes, size
        )
        for box, label, score in zip(boxes.tolist(), found.tolist(), scores.tolist()):
            rle = mask_util.frPyObjects([_polygon(rng, box, size)], height, width)[0]
            results.append(
                {
                    "image_id": image["id"],
                    "category_id": label,
                    "bbox": box,
                    "score": score,
                    "segmentation": _text(rle),
                }
            )
    return truth, results


def _random_boxes(rng: np.random.Generator, number: int, size: Tuple[int, int]) -> np.ndarray:
    """Boxes (x, y, w, h) from 8 pixels to 5 / 8 of the image's height."""
    height, width = size
    side = np.exp(rng.uniform(np.log(8), np.log(height * 5 / 8), number))
    aspect = np.exp(rng.normal(0, 0.4, number))
    w, h = np.minimum(side * aspect, width - 2), np.minimum(side / aspect, height - 2)
    x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
    return np.stack([x, y, w, h], axis=1).round(2)


def _detections(rng, objects, labels, number, num_classes, classes, size) -> tuple:
    height, width = size
    boxes, scores = _random_boxes(rng, number, size), rng.beta(1, 6, number)
    any_class = rng.integers(1, num_classes + 1, number)
    found = np.where(rng.random(number) < 0.4, rng.choice(classes, number), any_class)
    if len(objects):
        which, fits = rng.integers(len(objects), size=number), rng.random(number) < 0.5
        move = rng.normal(0, 0.12, (number, 4))
        near = objects[which].copy()
        near[:, :2] += near[:, 2:] * move[:, :2]
        near[:, 2:] *= np.exp(move[:, 2:])
        boxes, scores = (
            np.where(fits[:, None], near, boxes),
            np.where(fits, rng.beta(2, 2, number), scores),
        )
        keeps = fits & (rng.random(number) < 0.85)
        found = np.where(keeps, labels[which], found)
    corner = np.clip(boxes[:, :2], 0, [width - 4, height - 4])
    far = np.clip(corner + boxes[:, 2:], corner + 2, [width, height])
    boxes = np.concatenate([corner, far - corner], axis=1)
    return boxes, found, scores.astype(np.float32).astype(float)


def _polygon(rng: np.random.Generator, box: List[float], size: Tuple[int, int]) -> List[float]:
    """An uneven ellipse in a box."""
    x, y, w, h = box
    angle = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
    radius = 1 + 0.1 * rng.normal(size=_CORNERS)
    corners = np.stack(
        [x + w / 2 * (1 + radius * np.cos(angle)), y + h / 2 * (1 + radius * np.sin(angle))], axis=1
    )
    return np.clip(corners, 0, [size[1], size[0]]).round(2).ravel().tolist()


def _text(rle: Dict[str, Any]) -> Dict[str, Any]:
    return {"size": rle["size"], "counts": rle["counts"].decode()}
