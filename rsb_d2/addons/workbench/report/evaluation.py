"""The evaluation of a page: figures of hotcoco, and the kind of error of each detection.

AP, recall, TIDE's costs (Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection
Errors", arXiv 2008.08115), the confusion matrix, calibration and the match of detections with
objects are hotcoco's. Ours, and why:

* The kind of each detection: hotcoco counts the kinds of errors but does not list them. The sums of
  ours are equal to its counts.
* hotcoco 1.3 treats a crowd as an ordinary object in TIDE and in the confusion matrix, where TIDE's
  authors ignore it: with a crowd among ten objects, 56 instead of 49 detections count as poorly
  placed. Both are therefore computed without crowds, and without the detections that COCO's
  evaluation ignores.
* Where a class has no detection at all, TIDE's authors leave it out of the mean once its missed
  objects are taken out, while hotcoco 1.3 still counts it with an AP of 0. The cost of missed
  objects is corrected by that.
"""

from typing import Any, Dict, List, NamedTuple, Tuple

import hotcoco
import numpy as np
from hotcoco import mask as mask_util

from .results import Results
from .source import Source

# COCO's twelve figures, in the order of COCOeval.stats.
FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
IOUS = [round(0.5 + 0.05 * t, 2) for t in range(10)]

FOREGROUND_IOU = 0.5
BACKGROUND_IOU = 0.1
# IGNORED: in a crowd, or not among the best 100 of its class in its image.
CORRECT, CLS, LOC, BOTH, DUPE, BKG, IGNORED = range(7)
KINDS = ("correct", "Cls", "Loc", "Both", "Dupe", "Bkg")
ERRORS = (*KINDS[1:], "Miss")


class Evaluation(NamedTuple):
    """The evaluation of N detections against the M objects of K classes, by one kind of IoU.

    Args:
        precision (ndarray): (10 IoUs, 101 recalls, K, 4 areas, 3 limits); -1 without an object.
        recall (ndarray): (10 IoUs, K, 4 areas, 3 limits); -1 without an object.
        kind (ndarray): (N,) CORRECT to IGNORED, at IoU 0.5.
        object (ndarray): (N,) the object of a CORRECT detection, else -1.
        delta_ap (dict[str, float]): for each of ``ERRORS``, the gain in AP50 without them.
        error_counts (dict[str, int]): the number of each of ``ERRORS``.
        confusion (ndarray): (K + 1, K + 1) counts, truth by prediction, of the detections that
            reach the minimum score; the last row and column are background.
        calibration_error (float): ECE, the mean difference of score and precision.
    """

    precision: np.ndarray
    recall: np.ndarray
    kind: np.ndarray
    object: np.ndarray
    delta_ap: Dict[str, float]
    error_counts: Dict[str, int]
    confusion: np.ndarray
    calibration_error: float


def evaluate(source: Source, results: Results, task: str, score_threshold: float) -> Evaluation:
    """Evaluate detections.

    Args:
        source (Source): ground truth.
        results (Results): detections.
        task (str): ``"bbox"`` or ``"segm"``, whose IoU counts.
        score_threshold (float): minimum score for the confusion matrix.
    """
    coco_eval = _evaluate(source.coco, results.records, task)
    coco_eval.accumulate()
    matched = coco_eval.image_diagnostics(iou_thr=FOREGROUND_IOU)
    counted = np.zeros(len(results.score), dtype=bool)
    counted[np.array(list(matched["dt_status"]), dtype=np.int64) - 1] = True  # ids begin with 1
    index = {int(annotation_id): m for m, annotation_id in enumerate(source.ids)}
    object_ = np.full(len(results.score), -1)
    for detection, annotation_id in matched["dt_match"].items():
        object_[detection - 1] = index[annotation_id]
    kind, claimed = _kinds(source, results, task, counted, object_)

    plain = coco_eval
    if source.crowd.any() or not counted.all():
        content = source.coco.dataset
        annotations = [a for a in content["annotations"] if not a.get("iscrowd", 0)]
        records = [r for r, c in zip(results.records, counted) if c]
        plain = _evaluate(hotcoco.COCO({**content, "annotations": annotations}), records, task)
    tide = plain.tide_errors(pos_thr=FOREGROUND_IOU, bg_thr=BACKGROUND_IOU)
    objects = np.bincount(source.label[~source.crowd], minlength=len(source.class_names)) > 0
    found = np.zeros_like(objects)
    found[results.label[counted]] = found[source.label[claimed]] = True
    num_gone, num_classes = (objects & ~found).sum(), objects.sum()
    if num_gone:
        ap = tide["ap_base"] + tide["delta_ap"]["Miss"]
        ap = ap * num_classes / (num_classes - num_gone) if num_gone < num_classes else 1.0
        tide["delta_ap"]["Miss"] = ap - tide["ap_base"]
    confusion = plain.confusion_matrix(
        iou_thr=FOREGROUND_IOU, min_score=score_threshold, max_det=max(len(results.score), 1)
    )
    return Evaluation(
        np.asarray(coco_eval.eval["precision"]),
        np.asarray(coco_eval.eval["recall"]),
        kind,
        object_,
        {error: max(tide["delta_ap"][error], 0.0) for error in ERRORS},
        {error: tide["counts"][error] for error in ERRORS},
        confusion["matrix"].astype(np.int64),
        coco_eval.calibration(iou_threshold=FOREGROUND_IOU)["ece"],
    )


def _evaluate(truth: hotcoco.COCO, records: List[Dict[str, Any]], task: str) -> hotcoco.COCOeval:
    # Without the box, the area of a detection is that of its mask.
    keys = ("image_id", "category_id", "score", "segmentation" if task == "segm" else "bbox")
    found = truth.load_res([{key: record[key] for key in keys} for record in records])
    coco_eval = hotcoco.COCOeval(truth, found, task)
    coco_eval.evaluate()
    return coco_eval


# ---- kinds of detections ----


def _kinds(
    source: Source, results: Results, task: str, counted: np.ndarray, object_: np.ndarray
) -> Tuple[np.ndarray, np.ndarray]:
    """Return the kind of each detection, and the objects that only another class overlaps."""
    kind = np.full(len(results.score), IGNORED)
    kind[object_ >= 0] = CORRECT
    wrong = np.flatnonzero(counted & (object_ < 0))
    wrong = wrong[np.argsort(results.image[wrong], kind="stable")]
    truth = np.flatnonzero(~source.crowd)
    claimed = []
    for image in np.unique(results.image[wrong]):
        found = wrong[slice(*np.searchsorted(results.image[wrong], [image, image + 1]))]
        objects = truth[slice(*np.searchsorted(source.image[truth], [image, image + 1]))]
        ious = _ious(source, results, task, int(image), found, objects)
        same = results.label[found][:, None] == source.label[objects]
        kind[found] = _errors(ious, same)
        is_cls = kind[found] == CLS
        if is_cls.any():
            claimed += objects[np.where(same, 0, ious)[is_cls].argmax(axis=1)].tolist()
    return kind, np.array(claimed, dtype=np.int64)


def _errors(ious: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Return the kinds of D false detections by TIDE's definitions.

    The first of these that applies: poorly placed (Loc), of another class (Cls), a duplicate (Dupe:
    a detection with a better score has the object), background (Bkg), and otherwise both poorly
    placed and of another class.

    Args:
        ious (ndarray): (D, G) IoU with the objects of the image.
        same (ndarray): (D, G), whether detection and object are of one class.
    """
    own = np.where(same, ious, 0).max(axis=1, initial=0)
    other = np.where(same, 0, ious).max(axis=1, initial=0)
    conditions = [
        (own >= BACKGROUND_IOU) & (own <= FOREGROUND_IOU),
        other >= FOREGROUND_IOU,
        own >= FOREGROUND_IOU,
        np.maximum(own, other) <= BACKGROUND_IOU,
    ]
    return np.select(conditions, [LOC, CLS, DUPE, BKG], BOTH)


def _ious(
    source: Source,
    results: Results,
    task: str,
    image: int,
    found: np.ndarray,
    objects: np.ndarray,
) -> np.ndarray:
    if not len(found) or not len(objects):
        return np.zeros((len(found), len(objects)))
    if task == "bbox":
        shapes = np.array([results.records[i]["bbox"] for i in found], dtype=np.float64)
        truth = source.boxes[objects]
    else:
        shapes = [results.records[i]["segmentation"] for i in found]
        annotations = [a for a in source.annotations(image) if not a.get("iscrowd", 0)]
        truth = [source.coco.ann_to_rle(a) for a in annotations]
    return np.asarray(mask_util.iou(shapes, truth, [False] * len(objects)))


# ---- figures ----


def twelve_figures(evaluation: Evaluation, label: int | None = None) -> List[float | None]:
    """Return COCO's twelve figures, as ``COCOeval.summarize`` computes them.

    Args:
        evaluation (Evaluation): of one task.
        label (int): a class; None for the mean over all classes with objects.

    Returns:
        list[float]: in the order of ``FIGURES``, in 0 to 1; None without an object.
    """
    classes = slice(None) if label is None else slice(label, label + 1)
    precision, recall = evaluation.precision[:, :, classes], evaluation.recall[:, classes]
    figures = [precision[..., 0, 2], precision[0, ..., 0, 2], precision[5, ..., 0, 2]]
    figures += [precision[..., area, 2] for area in (1, 2, 3)]
    figures += [recall[..., 0, limit] for limit in (0, 1, 2)]
    figures += [recall[..., area, 2] for area in (1, 2, 3)]
    return [mean(values) for values in figures]


def mean(values: np.ndarray) -> float | None:
    """Return the mean of the values that are not -1, to 12 digits; None if there is none.

    Implementations of COCO's evaluation differ in further digits.
    """
    values = values[values > -1]
    return round(float(values.mean()), 12) if values.size else None


def mean_curve(precision: np.ndarray) -> List[float] | None:
    """Return the mean precision at the 101 recalls.

    Args:
        precision (ndarray): (IoUs, 101, classes), -1 where a class has no object.

    Returns:
        list[float]: 101 numbers in 0 to 1; None if no class has an object.
    """
    defined = (precision > -1).all(axis=(0, 1))
    if not defined.any():
        return None
    return precision[:, :, defined].mean(axis=(0, 2)).round(4).tolist()
