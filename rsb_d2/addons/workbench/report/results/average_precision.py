"""COCO's average precision and recall, over all classes and of each."""

from typing import Any, Dict, List, NamedTuple

import numpy as np

from .....evaluation.coco_evaluation import evaluate_detections
from ..source import Source
from .results_file import Results

# The twelve figures in the order of COCOeval.stats.
FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)

_AREAS = {"": 0, "s": 1, "m": 2, "l": 3}
_MAX_DETS = {"1": 0, "10": 1, "100": 2}


class Evaluation(NamedTuple):
    """What ``COCOeval.accumulate`` computes; -1 where a class has no object.

    Args:
        precision (np.ndarray): (10 IoUs, 101 recalls, K classes, 4 areas, 3 limits).
        recall (np.ndarray): (10 IoUs, K classes, 4 areas, 3 limits).
    """

    precision: np.ndarray
    recall: np.ndarray


def evaluate(source: Source, results: Results, task: str) -> Evaluation:
    """Run COCO's evaluation.

    Args:
        source (Source): ground truth.
        results (Results): detections.
        task (str): ``"bbox"`` or ``"segm"``.

    Returns:
        Evaluation
    """
    truth = {
        "images": list(source.images),
        "categories": [{"id": i} for i in source.category_ids],
        "annotations": _truth_records(source, task),
    }
    curves = evaluate_detections(truth, _result_records(source, results, task), task).eval
    return Evaluation(curves["precision"], curves["recall"])


def _truth_records(source: Source, task: str) -> List[Dict[str, Any]]:
    keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
    keys += ("segmentation",) if task == "segm" else ()
    return [{key: a[key] for key in keys} for a in source.annotations]


def _result_records(source: Source, results: Results, task: str) -> List[Dict[str, Any]]:
    image_ids = np.array([image["id"] for image in source.images])[results.image].tolist()
    category_ids = np.array(source.category_ids)[results.label].tolist()
    columns = dict(image_id=image_ids, category_id=category_ids, score=results.score.tolist())
    if task == "segm":
        columns["segmentation"] = results.masks
    elif results.boxes is not None:
        columns["bbox"] = results.boxes.tolist()
    return [dict(zip(columns, row)) for row in zip(*columns.values())]


def twelve_figures(evaluation: Evaluation, label: int | None = None) -> List[float | None]:
    """Return COCO's twelve figures, as ``COCOeval.summarize`` computes them.

    Args:
        evaluation (Evaluation): of one task.
        label (int): a class; None for the mean over all that have objects.

    Returns:
        list[float]: in the order of ``FIGURES``, in 0 ... 1; None where there is no object.
    """
    classes = slice(None) if label is None else slice(label, label + 1)
    precision = evaluation.precision[:, :, classes]
    recall = evaluation.recall[:, classes]
    figures = [mean(precision[..., 0, 2])]
    figures += [mean(precision[t : t + 1, ..., 0, 2]) for t in (0, 5)]
    figures += [mean(precision[..., _AREAS[a], 2]) for a in "sml"]
    figures += [mean(recall[..., 0, m]) for m in _MAX_DETS.values()]
    figures += [mean(recall[..., _AREAS[a], 2]) for a in "sml"]
    return figures


def mean(values: np.ndarray) -> float | None:
    """Return the mean of what is defined, which is above -1; None if nothing is."""
    values = values[values > -1]
    return float(np.mean(values)) if values.size else None


def mean_curve(precision: np.ndarray) -> List[float] | None:
    """Return precision at the 101 recalls, the mean over IoUs and classes that have objects.

    Args:
        precision (np.ndarray): (IoUs, 101, classes), -1 where a class has no object.

    Returns:
        list[float]: 101 numbers in 0 ... 1; None if no class has an object.
    """
    defined = (precision > -1).all(axis=(0, 1))
    if not defined.any():
        return None
    return precision[:, :, defined].mean(axis=(0, 2)).tolist()
