"""The report of an evaluation, from a data set and a results file to one HTML page."""

import os
import sys
from typing import Any, Dict, List

import numpy as np

from ....errors import UserError
from .evaluation import (
    BKG,
    CORRECT,
    ERRORS,
    FIGURES,
    IGNORED,
    IOUS,
    KINDS,
    Evaluation,
    evaluate,
    mean,
    mean_curve,
    twelve_figures,
)
from .html_page import check_output, describe_images, outline, rounded, write_page
from .results import Results, read_results
from .source import Source

_BINS = 20  # of the histogram of scores
_TASK_NAMES = {"bbox": "boxes", "segm": "masks"}
_PER_CLASS = (3, 1)  # worst and best images of each class
_LOWEST_SCORE = 0.05  # of a detection that is shown
_MAX_SHOWN = 60  # detections of an image


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
        score_threshold (float): minimum score for the confusion matrix, the errors of a class and
            the ranking of images.
        num_images (int): number of worst and of best images; with 0, there are none of any class.
        task (str): ``"bbox"`` or ``"segm"`` for only that one; by default everything there is.
        records (list[dict]): the content of ``results_file`` from :func:`read_results`.

    Returns:
        dict: the data of the page.

    Raises:
        UserError: if the results do not fit the data set, or the page cannot be written.
    """
    check_output(output, ".html")
    records = read_results(results_file) if records is None else records
    results = Results(records, source, results_file)
    tasks, notes = _tasks(source, results, task)
    evaluations = {}
    for task in tasks:
        print(f"evaluating {_TASK_NAMES[task]}", file=sys.stderr)
        evaluations[task] = evaluate(source, results, task, score_threshold)
    chosen: Dict[int, None] = {}
    for evaluation in evaluations.values():
        chosen.update(
            dict.fromkeys(_choose(source, results, evaluation, score_threshold, num_images))
        )
    by_score = np.argsort(-results.score, kind="stable")
    crowds = int(source.crowd.sum())
    page = dict(
        name=source.name,
        results=os.path.basename(results_file),
        classes=source.class_names,
        counts=dict(
            images=len(source.images),
            objects=len(source.ids) - crowds,
            crowds=crowds,
            detections=len(records),
        ),
        notes=source.warnings + results.warnings + notes,
        scoreThreshold=score_threshold,
        figures=FIGURES,
        ious=IOUS,
        kinds=KINDS,
        errors=ERRORS,
        tasks={
            task: _task_data(source, results, evaluation, score_threshold)
            for task, evaluation in evaluations.items()
        },
        images=describe_images(
            source, list(chosen), lambda i: _describe(source, results, evaluations, by_score, i)
        ),
    )
    write_page(output, "report", f"Detection report: {source.name}", page)
    return page


def _tasks(source: Source, results: Results, wanted: str | None) -> tuple:
    """Return the results to evaluate, and notes about the rest."""
    tasks, notes = list(results.tasks), []
    without = int((~source.has_mask).sum())
    reasons = {
        "bbox": "the results hold no boxes ('bbox')",
        "segm": "the results hold no masks ('segmentation'): they are a box-only model's",
    }
    if "segm" in tasks and without:
        tasks.remove("segm")
        reasons["segm"] = f"{without} of {len(source.ids)} annotations have no mask"
    if wanted is not None and wanted not in tasks:
        raise UserError(f"--task {wanted}: {reasons[wanted]}")
    if not tasks:
        raise UserError(f"there is nothing to evaluate: {reasons['bbox']}, and {reasons['segm']}")
    if results.records and "segm" not in tasks:
        notes.append(f"Masks are not evaluated: {reasons['segm']}.")
    return ([wanted] if wanted else tasks), notes


# ---- figures ----


def _task_data(
    source: Source, results: Results, evaluation: Evaluation, score_threshold: float
) -> Dict[str, Any]:
    num_classes = len(source.class_names)
    classes = range(num_classes)
    precision = evaluation.precision[..., 0, 2]  # (10 IoUs, 101 recalls, K)
    truth = ~source.crowd
    objects = np.bincount(source.label[truth], minlength=num_classes)
    sizes = np.zeros((num_classes, 3), dtype=np.int64)
    size = np.digitize(source.area[truth], [32**2, 96**2])  # as in COCO
    np.add.at(sizes, (source.label[truth], size), 1)

    counts = np.zeros((num_classes, len(KINDS), _BINS), dtype=np.int64)
    shown = evaluation.kind <= BKG
    bins = (results.score[shown] * _BINS).astype(np.int64).clip(0, _BINS - 1)
    np.add.at(counts, (results.label[shown], evaluation.kind[shown], bins), 1)

    by_kind = np.zeros((num_classes, len(KINDS)), dtype=np.int64)
    sure = shown & (results.score >= score_threshold)
    np.add.at(by_kind, (results.label[sure], evaluation.kind[sure]), 1)
    missed = objects - by_kind[:, CORRECT]
    rows, columns = np.nonzero(evaluation.confusion)
    return dict(
        figures=twelve_figures(evaluation),
        classFigures=[twelve_figures(evaluation, k) for k in classes],
        objects=objects.tolist(),
        detections=np.bincount(results.label, minlength=num_classes).tolist(),
        sizes=sizes.tolist(),
        # At each IoU and their mean; of each class at IoU 0.5, 0.75, and the mean over all.
        curves=dict(
            all=[mean_curve(precision[t : t + 1]) for t in range(len(IOUS))],
            mean=mean_curve(precision),
            classes=[
                [mean_curve(precision[ious, :, k : k + 1]) for ious in ([0], [5], slice(None))]
                for k in classes
            ],
        ),
        apByIou=[mean(p) for p in precision],
        classApByIou=[[mean(p[:, k]) for p in precision] for k in classes],
        deltaAp=[evaluation.delta_ap[error] for error in ERRORS],
        errorCounts=[evaluation.error_counts[error] for error in ERRORS],
        classErrorCounts=np.c_[by_kind[:, 1:], missed].tolist(),
        calibrationError=evaluation.calibration_error,
        histogram=counts.tolist(),
        confusion=np.c_[rows, columns, evaluation.confusion[rows, columns]].tolist(),
    )


# ---- images ----


def _choose(
    source: Source, results: Results, evaluation: Evaluation, score_threshold: float, count: int
) -> List[int]:
    """Choose the worst and the best images, over all classes and of each class.

    The rank of an image is its F1, 2 TP / (2 TP + FP + FN), over the detections that reach the
    minimum score; between equals, the number of errors or of correct detections.

    Returns:
        list[int]: indices of images, worst and best in turn, so that a page with fewer has both.
    """
    if not count:
        return []
    shape = len(source.images), len(source.class_names)
    sure = (results.score >= score_threshold) & (evaluation.kind != IGNORED)
    correct = sure & (evaluation.kind == CORRECT)
    true, found, objects = (
        np.bincount(image * shape[1] + label, minlength=shape[0] * shape[1]).reshape(shape)
        for image, label in (
            (results.image[correct], results.label[correct]),
            (results.image[sure], results.label[sure]),
            (source.image[~source.crowd], source.label[~source.crowd]),
        )
    )
    chosen: Dict[int, None] = {}
    limits = [(count, count)] + [_PER_CLASS] * shape[1]
    for columns, (num_worst, num_best) in zip([slice(None), *range(shape[1])], limits):
        tp, total = (
            n[:, columns].reshape(shape[0], -1).sum(axis=1) for n in (true, found + objects)
        )
        rows = np.flatnonzero(total)
        tp, total = tp[rows], total[rows]
        f1 = 2 * tp / total
        worst = rows[np.lexsort((2 * tp - total, f1))][:num_worst]
        best = rows[np.lexsort((-tp, -f1))][: min(num_best, (tp > 0).sum())]
        for rank in range(max(num_worst, num_best)):
            for images in (worst, best):
                chosen.update(dict.fromkeys(images[rank : rank + 1].tolist()))
    return list(chosen)


def _describe(
    source: Source,
    results: Results,
    evaluations: Dict[str, Evaluation],
    by_score: np.ndarray,
    image: int,
) -> Dict[str, Any]:
    """Return the objects and the best detections of an image."""
    with_masks = "segm" in evaluations
    objects = np.flatnonzero(source.image == image)
    found = by_score[results.image[by_score] == image]
    found = found[results.score[found] >= _LOWEST_SCORE][:_MAX_SHOWN]
    truth = []
    for g, annotation in zip(objects, source.annotations(image)):
        entry = dict(c=int(source.label[g]), b=rounded(source.boxes[g]))
        if source.crowd[g]:
            entry["crowd"] = 1
        if with_masks:
            entry["p"] = outline(source.coco.ann_to_rle(annotation))
        truth.append(entry)
    detections = []
    for d in found:
        record = results.records[d]
        entry = dict(c=int(results.label[d]), s=round(record["score"], 3))
        if "bbox" in record:
            entry["b"] = rounded(record["bbox"])
        if with_masks:
            entry["p"] = outline(record["segmentation"])
        entry["kind"] = {task: int(e.kind[d]) for task, e in evaluations.items()}
        entry["of"] = {
            task: int(e.object[d] - objects[0])
            for task, e in evaluations.items()
            if e.kind[d] == CORRECT
        }
        detections.append(entry)
    return dict(truth=truth, found=detections)
