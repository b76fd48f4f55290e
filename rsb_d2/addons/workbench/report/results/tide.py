"""What each kind of error costs: TIDE's dAP (arXiv 2008.08115, section 2.3).

An oracle corrects all errors of one kind, and AP at IoU 0.5 is computed anew; dAP is the gain:

* Cls, Loc: the detection becomes correct, if it is the best scored of those that would then have
  the same, so far unfound object; else it is taken out
* Both, Dupe, Bkg: the detection is taken out
* Miss: the object is taken out
"""

from typing import Dict, NamedTuple, Tuple

import numpy as np

from .average_precision import RECALL_THRESHOLDS
from .matching import (
    BKG,
    BOTH,
    CLS,
    CORRECT,
    DUPE,
    ERRORS,
    IGNORED,
    LOC,
    Matching,
)
from .results_file import Results

_CODES = dict(Cls=CLS, Loc=LOC, Both=BOTH, Dupe=DUPE, Bkg=BKG)


class Breakdown(NamedTuple):
    """Errors by kind; K classes.

    Args:
        ap50 (float): AP at IoU 0.5, in 0 ... 1, which equals COCO's.
        delta_ap (dict[str, float]): of each of ``ERRORS``, the gain in ``ap50``, 0 or more.
        class_ap50 (np.ndarray): (K,); NaN for a class without objects.
        class_delta_ap (dict[str, np.ndarray]): (K,); NaN where there is nothing to compare.
        class_count (dict[str, np.ndarray]): (K,) number of errors: of detections by the class
            that they claim, of missed objects by theirs.
    """

    ap50: float
    delta_ap: Dict[str, float]
    class_ap50: np.ndarray
    class_delta_ap: Dict[str, np.ndarray]
    class_count: Dict[str, np.ndarray]


def break_down(results: Results, matching: Matching, num_classes: int) -> Breakdown:
    """Count the errors, and compute what each kind costs.

    Args:
        results (Results): detections.
        matching (Matching): from :func:`rsb_d2.addons.workbench.report.results.matching.match`.
        num_classes (int): K.

    Returns:
        Breakdown
    """
    truth = matching.truth
    objects = np.bincount(truth.label[~truth.crowd], minlength=num_classes)
    label, correct, keep = results.label, matching.kind == CORRECT, matching.kind != IGNORED
    # COCOeval's order among equal scores: by image, then as in the file.
    order = np.argsort(results.image, kind="stable")
    score = results.score

    def average_precision(label, correct, keep, objects):
        rows = order[keep[order]]
        return ap_by_class(label[rows], score[rows], correct[rows], objects)

    class_ap50 = average_precision(label, correct, keep, objects)
    class_ap50[objects == 0] = np.nan  # such a class is not in COCO's mean
    class_delta_ap, delta_ap, class_count = {}, {}, {}
    for error in ERRORS:
        if error == "Miss":
            missed = np.bincount(truth.label[matching.missed], minlength=num_classes)
            class_count[error] = missed
            fixed = average_precision(label, correct, keep, objects - missed)
        else:
            rows = matching.kind == _CODES[error]
            class_count[error] = np.bincount(label[rows], minlength=num_classes)
            fixed = average_precision(*_correct(rows, results, matching), objects)
        fixed[objects == 0] = np.nan
        class_delta_ap[error] = fixed - class_ap50
        delta_ap[error] = max(_mean(fixed, if_empty=1.0) - _mean(class_ap50), 0.0)
    return Breakdown(_mean(class_ap50), delta_ap, class_ap50, class_delta_ap, class_count)


def _correct(
    rows: np.ndarray, results: Results, matching: Matching
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return label, correctness and presence of all detections once these are corrected."""
    label, correct = results.label.copy(), matching.kind == CORRECT
    keep = (matching.kind != IGNORED) & ~rows
    corrected = np.flatnonzero(rows)[_is_best_of_object(results, matching)[rows]]
    keep[corrected] = correct[corrected] = True
    label[corrected] = matching.truth.label[matching.object[corrected]]
    return label, correct, keep


def _is_best_of_object(results: Results, matching: Matching) -> np.ndarray:
    """Return (N,) of bool: the best scored of the CLS and LOC errors that share an object."""
    best = np.zeros(len(results.score), dtype=bool)
    rows = np.flatnonzero(np.isin(matching.kind, (CLS, LOC)) & (matching.object >= 0))
    rows = rows[np.argsort(-results.score[rows], kind="stable")]
    _, first = np.unique(matching.object[rows], return_index=True)
    best[rows[first]] = True
    return best


def ap_by_class(
    label: np.ndarray, score: np.ndarray, correct: np.ndarray, objects: np.ndarray
) -> np.ndarray:
    """Compute COCO's average precision, the mean of 101 points, of each class at one IoU.

    Args:
        label (np.ndarray): (N,) of int.
        score (np.ndarray): (N,) of float.
        correct (np.ndarray): (N,) of bool.
        objects (np.ndarray): (K,) number of objects.

    Returns:
        np.ndarray: (K,) in 0 ... 1. Of a class without objects 0 if it has detections, else NaN.
    """
    order = np.lexsort((-score, label))
    bounds = np.searchsorted(label[order], np.arange(len(objects) + 1))
    aps = np.full(len(objects), np.nan)
    for k, num_objects in enumerate(objects):
        rows = order[bounds[k] : bounds[k + 1]]
        if num_objects:
            aps[k] = _average_precision(correct[rows], num_objects)
        elif len(rows):
            aps[k] = 0.0
    return aps


def _average_precision(correct: np.ndarray, num_objects: int) -> float:
    true = np.cumsum(correct)
    recall = true / num_objects
    precision = true / (np.arange(1, len(true) + 1) + np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, RECALL_THRESHOLDS, side="left")
    return float(np.mean(np.append(precision, 0.0)[at]))


def _mean(values: np.ndarray, if_empty: float = 0.0) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else if_empty
