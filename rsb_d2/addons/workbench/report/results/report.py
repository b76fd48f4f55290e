"""The report of an evaluation: from a data set and a results JSON to one HTML page."""

import os
import sys
from typing import Any, Dict, List

import numpy as np

from .....errors import UserError
from ..output import (
    check_output,
    progress,
    render,
    write_whole,
)
from ..source import Source
from .average_precision import (
    FIGURES,
    IOU_THRESHOLDS,
    Evaluation,
    evaluate,
    mean,
    mean_curve,
    twelve_figures,
)
from .examples import choose, describe
from .matching import (
    BKG,
    ERRORS,
    KINDS,
    Matching,
    match,
)
from .results_file import Results, match_to_source, read_results
from .tide import break_down

_BINS = 20  # of the score histogram
_TASK_NAMES = {"bbox": "boxes", "segm": "masks"}


def report(
    source: Source,
    results_file: str,
    output: str,
    *,
    score_threshold: float = 0.5,
    num_images: int = 24,
    task: str | None = None,
    records: List[Dict[str, Any]] | None = None,
) -> Dict[str, Any]:
    """Write the report of an evaluation.

    Args:
        source (Source): ground truth.
        results_file (str): COCO-format results.
        output (str): HTML file to write.
        score_threshold (float): of the confusion matrix and of the images' rank.
        num_images (int): how many best and how many worst images; 0 for none of any class.
        task (str): ``"bbox"`` or ``"segm"`` for that one alone; by default all that there is.
        records (list[dict]): what :func:`read_results` read, if it was read before.

    Returns:
        dict: what the page shows.

    Raises:
        UserError: if the results do not fit the data set, or the page cannot be written.
    """
    check_output(output, ".html")
    records = read_results(results_file) if records is None else records
    results = match_to_source(records, source, results_file)
    tasks, notes = _tasks(source, results, task)
    data, matchings = {}, {}
    for task in tasks:
        print(f"evaluating {_TASK_NAMES[task]}", file=sys.stderr)
        evaluation = evaluate(source, results, task)
        show = progress(f"matching {_TASK_NAMES[task]}")
        matchings[task] = match(source, results, task, score_threshold, show)
        data[task] = _task_data(source, results, evaluation, matchings[task])

    print("drawing images", file=sys.stderr)
    chosen = {}
    for matching in matchings.values():
        shape = len(source.images), len(source.class_names)
        ranked = choose(results, matching, *shape, score_threshold, num_images)
        chosen.update(dict.fromkeys(ranked))
    images = describe(source, results, matchings, list(chosen), progress("images"))
    crowds = int(matchings[tasks[0]].truth.crowd.sum())
    page = dict(
        name=source.name,
        results=os.path.basename(results_file),
        classes=source.class_names,
        counts=dict(
            images=len(source.images),
            objects=len(source.annotations) - crowds,
            crowds=crowds,
            detections=len(results.score),
        ),
        notes=source.warnings + results.warnings + notes,
        scoreThreshold=score_threshold,
        figures=FIGURES,
        ious=[round(float(t), 2) for t in IOU_THRESHOLDS],
        kinds=KINDS,
        errors=ERRORS,
        tasks=data,
        images=images,
    )
    write_whole(output, render("report", f"Detection report: {source.name}", page))
    return page


def _tasks(source: Source, results: Results, wanted: str | None) -> tuple:
    """Return what to evaluate, and what the page says about the rest."""
    tasks, notes = list(results.tasks), []
    without = sum(not a.get("segmentation") for a in source.annotations)
    reasons = {
        "bbox": "the results hold no boxes ('bbox')",
        "segm": "the results hold no masks ('segmentation'): they are a box-only model's",
    }
    if "segm" in tasks and without:
        tasks.remove("segm")
        reasons["segm"] = f"{without} of {len(source.annotations)} annotations have no mask"
    if wanted is not None and wanted not in tasks:
        raise UserError(f"--task {wanted}: {reasons[wanted]}")
    if not tasks:
        raise UserError(f"there is nothing to evaluate: {reasons['bbox']}, and {reasons['segm']}")
    if len(results.score) and "segm" not in tasks:
        notes.append(f"Masks are not evaluated: {reasons['segm']}.")
    return ([wanted] if wanted else tasks), notes


def _task_data(
    source: Source, results: Results, evaluation: Evaluation, matching: Matching
) -> Dict[str, Any]:
    classes = range(len(source.class_names))
    errors = break_down(results, matching, len(classes))
    truth = matching.truth
    per_class = dict(minlength=len(classes))
    return dict(
        figures=_exact(twelve_figures(evaluation)),
        classFigures=[_exact(twelve_figures(evaluation, k)) for k in classes],
        objects=np.bincount(truth.label[~truth.crowd], **per_class).tolist(),
        detections=np.bincount(results.label, **per_class).tolist(),
        sizes=_sizes(source, matching),
        curves=_curves(evaluation),
        apByIou=[_precision_at(evaluation, t, slice(None)) for t in range(10)],
        classApByIou=[
            [_precision_at(evaluation, t, slice(k, k + 1)) for t in range(10)] for k in classes
        ],
        ap50=_exact([errors.ap50])[0],
        deltaAp=_exact([errors.delta_ap[e] for e in ERRORS]),
        classDeltaAp=[_exact([errors.class_delta_ap[e][k] for e in ERRORS]) for k in classes],
        errorCounts=[[int(errors.class_count[e][k]) for e in ERRORS] for k in classes],
        histogram=_histogram(results, matching, len(classes)),
        confusion=_sparse(matching.confusion),
    )


def _exact(values: List[float | None]) -> List[float | None]:
    """Round to 12 digits, above which the implementations of COCO's evaluation differ."""
    return [None if v is None or np.isnan(v) else round(float(v), 12) for v in values]


def _precision_at(evaluation: Evaluation, iou: int, classes: slice) -> float | None:
    return _exact([mean(evaluation.precision[iou, :, classes, 0, 2])])[0]


def _curves(evaluation: Evaluation) -> Dict[str, Any]:
    """Return precision over recall: of all classes at each IoU and of their mean; of each class
    at IoU 0.5, 0.75 and of the mean over ten."""
    precision = evaluation.precision[..., 0, 2]

    def curve(ious: slice, classes: slice) -> List[float] | None:
        values = mean_curve(precision[ious, :, classes])
        return values and [round(v, 4) for v in values]

    everything = slice(None)
    return dict(
        all=[curve(slice(t, t + 1), everything) for t in range(10)],
        mean=curve(everything, everything),
        classes=[
            [curve(ious, slice(k, k + 1)) for ious in (slice(0, 1), slice(5, 6), everything)]
            for k in range(precision.shape[2])
        ],
    )


def _sizes(source: Source, matching: Matching) -> List[List[int]]:
    """Return of each class how many objects are small, medium and large, by COCO's areas."""
    truth = matching.truth
    area = np.array([a["area"] for a in source.annotations], dtype=np.float64)
    size = np.digitize(area, [32**2, 96**2])
    counts = np.zeros((len(source.class_names), 3), dtype=np.int64)
    np.add.at(counts, (truth.label[~truth.crowd], size[~truth.crowd]), 1)
    return counts.tolist()


def _histogram(results: Results, matching: Matching, num_classes: int) -> List[List[List[int]]]:
    """Return (K classes, 6 kinds, 20 bins of the score from 0 to 1) counts."""
    counts = np.zeros((num_classes, len(KINDS), _BINS), dtype=np.int64)
    rows = matching.kind <= BKG
    bins = (results.score[rows] * _BINS).astype(np.int64).clip(0, _BINS - 1)
    np.add.at(counts, (results.label[rows], matching.kind[rows], bins), 1)
    return counts.tolist()


def _sparse(matrix: np.ndarray) -> List[List[int]]:
    rows, columns = np.nonzero(matrix)
    return np.stack([rows, columns, matrix[rows, columns]], axis=1).tolist()
