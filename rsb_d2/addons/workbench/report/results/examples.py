"""The best and worst images of an evaluation, with truth and predictions."""

from typing import Any, Callable, Dict, List

import numpy as np

from ..pictures import (
    BUDGET,
    outline,
    rounded,
    thumbnail,
)
from ..source import Source, to_rle, xywh
from .matching import CORRECT, IGNORED, Matching
from .results_file import Results

_OVERALL = 24  # worst, and as many best
_PER_CLASS = (3, 1)  # worst, best
_LOWEST_SCORE = 0.05
_MAX_SHOWN = 60  # detections of an image


def choose(
    results: Results,
    matching: Matching,
    num_images: int,
    num_classes: int,
    score_threshold: float,
    count: int = _OVERALL,
) -> List[int]:
    """Choose the worst and the best images, of all and of each class.

    An image's rank is its F1, 2 TP / (2 TP + FP + FN), over the detections of
    ``score_threshold`` or more at IoU 0.5; among equals, by the number of errors or of finds.

    Args:
        results (Results): N detections.
        matching (Matching): of them.
        num_images (int): of the data set.
        num_classes (int): of the data set.
        score_threshold (float): detections below it do not count.
        count (int): how many worst and how many best images.

    Returns:
        list[int]: indices of images, the more telling first.
    """
    truth = matching.truth
    sure = (results.score >= score_threshold) & (matching.kind != IGNORED)
    correct = sure & (matching.kind == CORRECT)
    shape = (num_images, num_classes)
    counts = []
    for image, label in (
        (results.image[correct], results.label[correct]),
        (results.image[sure], results.label[sure]),
        (truth.image[~truth.crowd], truth.label[~truth.crowd]),
    ):
        flat = np.bincount(image * num_classes + label, minlength=num_images * num_classes)
        counts.append(flat.reshape(shape))
    columns = [[c.sum(axis=1) for c in counts]]
    columns += [[c[:, k] for c in counts] for k in range(num_classes)]
    chosen: Dict[int, None] = {}
    for i, (true, found, objects) in enumerate(columns):
        worst, best = _rank(true, found, objects)
        num_worst, num_best = (count, count) if i == 0 else _PER_CLASS
        if not count:
            continue
        # By turns, so that a page that is cut short has both.
        for rank in range(max(num_worst, num_best)):
            chosen.update(dict.fromkeys(worst[rank : min(rank + 1, num_worst)].tolist()))
            chosen.update(dict.fromkeys(best[rank : min(rank + 1, num_best)].tolist()))
    return list(chosen)


def _rank(true: np.ndarray, found: np.ndarray, objects: np.ndarray) -> tuple:
    """Return the images that have something in them, the worst first and the best first."""
    something = np.flatnonzero(found + objects)
    errors = (found + objects - 2 * true)[something]
    f1 = 2 * true[something] / (found + objects)[something]
    worst = something[np.lexsort((-errors, f1))]
    best = something[np.lexsort((-true[something], -f1))]
    return worst, best[f1[np.lexsort((-true[something], -f1))] > 0]


def describe(
    source: Source,
    results: Results,
    matchings: Dict[str, Matching],
    chosen: List[int],
    progress: Callable = iter,
) -> List[Dict[str, Any]]:
    """Return images with their objects and detections as the page takes them.

    Args:
        source (Source): ground truth.
        results (Results): detections.
        matchings (dict[str, Matching]): by task.
        chosen (list[int]): indices of images; the last are left out if the page grows too big.
        progress (callable): wraps ``chosen``.

    Returns:
        list[dict]: ``file``, ``w``, ``h``, ``src`` (data URI or None), ``truth`` and ``found``.
    """
    truth = next(iter(matchings.values())).truth
    with_masks = "segm" in matchings
    boxes = xywh(source.annotations)
    by_score = np.argsort(-results.score, kind="stable")
    described, size = [], 0
    for i in progress(chosen):
        image = source.images[i]
        objects = np.flatnonzero(truth.image == i)
        found = by_score[results.image[by_score] == i]
        found = found[results.score[found] >= _LOWEST_SCORE][:_MAX_SHOWN]
        local = {int(g): n for n, g in enumerate(objects)}
        entry = dict(
            file=image["file_name"],
            w=image["width"],
            h=image["height"],
            src=thumbnail(source, image),
            truth=[_object(source, truth, boxes, g, with_masks) for g in objects],
            found=[_detection(results, matchings, d, local) for d in found],
        )
        size += sum(len(str(value)) for value in entry.values())
        if size > BUDGET:
            break
        described.append(entry)
    return described


def _object(source: Source, truth, boxes: np.ndarray, g: int, with_masks: bool) -> Dict[str, Any]:
    entry = dict(c=int(truth.label[g]), b=rounded(boxes[g]))
    if truth.crowd[g]:
        entry["crowd"] = 1
    if with_masks:
        height, width = (source.images[truth.image[g]][key] for key in ("height", "width"))
        entry["p"] = outline(to_rle(source.annotations[g]["segmentation"], height, width))
    return entry


def _detection(
    results: Results, matchings: Dict[str, Matching], d: int, local: Dict[int, int]
) -> Dict[str, Any]:
    entry = dict(c=int(results.label[d]), s=round(float(results.score[d]), 3))
    if results.boxes is not None:
        entry["b"] = rounded(results.boxes[d])
    if "segm" in matchings:
        entry["p"] = outline(results.masks[d])
    entry["kind"] = {task: int(m.kind[d]) for task, m in matchings.items()}
    entry["of"] = {
        task: local[int(m.object[d])] for task, m in matchings.items() if m.kind[d] == CORRECT
    }
    return entry
