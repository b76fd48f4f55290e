"""Which detection finds which object at IoU 0.5, and what is wrong with every other one.

The six errors are TIDE's (Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection
Errors", arXiv 2008.08115, section 2.2), told apart in the order of its authors' toolbox:

* Loc: the right class, IoU in 0.1 ... 0.5
* Cls: IoU of 0.5 or more with an object of another class
* Dupe: the right class, IoU of 0.5 or more, but a better scored detection has the object
* Bkg: IoU of 0.1 or less with every object
* Both: what is left, IoU in 0.1 ... 0.5 with an object of another class only
* Miss: an object that no detection finds and that no Cls or Loc error would find if corrected

The match itself is COCO's: detections by falling score, each to the free object of its class with
the highest IoU; a crowd excuses any number of them.
"""

from typing import Callable, List, NamedTuple, Tuple

import numpy as np
import pycocotools.mask as mask_util

from ..source import Source, to_rle, xywh
from .results_file import Results

FOREGROUND_IOU = 0.5
BACKGROUND_IOU = 0.1
MAX_DETECTIONS = 100  # of a class in an image, as in COCO's evaluation

# What a detection is. IGNORED: in a crowd, or beyond MAX_DETECTIONS.
CORRECT, CLS, LOC, BOTH, DUPE, BKG, IGNORED = range(7)
KINDS = ("correct", "Cls", "Loc", "Both", "Dupe", "Bkg")
ERRORS = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")


class Truth(NamedTuple):
    """M objects.

    Args:
        image (np.ndarray): (M,) of int, index into ``Source.images``.
        label (np.ndarray): (M,) of int, index into ``Source.class_names``.
        crowd (np.ndarray): (M,) of bool.
    """

    image: np.ndarray
    label: np.ndarray
    crowd: np.ndarray


class Matching(NamedTuple):
    """The detections of ``Results``, against the objects of ``Truth``.

    Args:
        truth (Truth): the objects.
        kind (np.ndarray): (N,) of int, CORRECT ... IGNORED.
        object (np.ndarray): (N,) of int: the object that a CORRECT detection has, or that a CLS
            or LOC one would have if corrected; -1 for none.
        has_detection (np.ndarray): (M,) of bool, whether an object was found.
        missed (np.ndarray): (M,) of bool, whether an object is a Miss.
        confusion (np.ndarray): (K + 1, K + 1) of int, truth by prediction; see ``_confuse``.
    """

    truth: Truth
    kind: np.ndarray
    object: np.ndarray
    has_detection: np.ndarray
    missed: np.ndarray
    confusion: np.ndarray


def match(
    source: Source,
    results: Results,
    task: str,
    score_threshold: float = 0.5,
    progress: Callable = iter,
) -> Matching:
    """Match all detections of a data set.

    Args:
        source (Source): ground truth.
        results (Results): N detections.
        task (str): ``"bbox"`` or ``"segm"``: whose IoU.
        score_threshold (float): detections below it are not in the confusion matrix.
        progress (callable): wraps the sequence of image indices.

    Returns:
        Matching
    """
    truth = _truth(source)
    kind = np.full(len(results.score), IGNORED)
    object_ = np.full(len(results.score), -1)
    num_classes = len(source.class_names)
    confusion = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    truth_rows = _rows_by_image(truth.image, len(source.images))
    found_rows = _rows_by_image(results.image, len(source.images))
    shapes = _shapes(source, results, task)
    for i in progress(range(len(source.images))):
        found, objects = found_rows[i], truth_rows[i]
        found = found[np.argsort(-results.score[found], kind="stable")]
        found = found[_rank_in_class(results.label[found]) < MAX_DETECTIONS]
        ious = _ious(*shapes(found, objects), truth.crowd[objects])
        labels, true_labels = results.label[found], truth.label[objects]
        crowd = truth.crowd[objects]
        kind[found], local = match_image(ious, labels, true_labels, crowd)
        object_[found] = np.where(local >= 0, np.append(objects, -1)[local], -1)
        sure = results.score[found] >= score_threshold
        _confuse(confusion, ious[sure], labels[sure], true_labels, crowd)

    has_detection = np.zeros(len(truth.image), dtype=bool)
    has_detection[object_[kind == CORRECT]] = True
    covered = has_detection | truth.crowd
    covered[object_[np.isin(kind, (CLS, LOC)) & (object_ >= 0)]] = True
    return Matching(truth, kind, object_, has_detection, ~covered, confusion)


def match_image(
    ious: np.ndarray, labels: np.ndarray, true_labels: np.ndarray, crowd: np.ndarray
) -> Tuple[np.ndarray, np.ndarray]:
    """Match the detections of one image.

    Args:
        ious (np.ndarray): (D, G) IoU of the detections, by falling score, with the objects; with
            a crowd, the share of the detection that is in it.
        labels (np.ndarray): (D,) of int.
        true_labels (np.ndarray): (G,) of int.
        crowd (np.ndarray): (G,) of bool.

    Returns:
        np.ndarray: (D,) kinds.
        np.ndarray: (D,) objects as in :class:`Matching`, indices into this image's.
    """
    same = labels[:, None] == true_labels[None]
    own = np.where(same & ~crowd, ious, 0.0)
    kind = np.full(len(labels), BKG)
    object_ = np.full(len(labels), -1)

    taken = np.zeros(len(true_labels), dtype=bool)
    for d in np.flatnonzero((own >= FOREGROUND_IOU).any(axis=1)):
        free = np.where(taken, 0.0, own[d])
        best = len(free) - 1 - int(free[::-1].argmax())  # of equals COCOeval takes the last
        if free[best] >= FOREGROUND_IOU:
            kind[d], object_[d], taken[best] = CORRECT, best, True

    in_crowd = (same & crowd & (ious >= FOREGROUND_IOU)).any(axis=1)
    kind[(kind != CORRECT) & in_crowd] = IGNORED
    rest = np.flatnonzero(kind == BKG)
    if len(rest) and (~crowd).any():
        kind[rest], object_[rest] = _errors(ious[rest], own[rest], same[rest], crowd, taken)
    return kind, object_


def _errors(
    ious: np.ndarray, own: np.ndarray, same: np.ndarray, crowd: np.ndarray, taken: np.ndarray
) -> Tuple[np.ndarray, np.ndarray]:
    """Tell the errors apart; arguments and results as in :func:`match_image`."""
    rows = np.arange(len(ious))
    other = np.where(~same & ~crowd, ious, 0.0)
    best_own, best_other = own.argmax(axis=1), other.argmax(axis=1)
    own_iou, other_iou = own[rows, best_own], other[rows, best_other]
    conditions = [
        (own_iou >= BACKGROUND_IOU) & (own_iou <= FOREGROUND_IOU),
        other_iou >= FOREGROUND_IOU,
        own_iou >= FOREGROUND_IOU,
        np.maximum(own_iou, other_iou) <= BACKGROUND_IOU,
    ]
    kind = np.select(conditions, [LOC, CLS, DUPE, BKG], BOTH)
    target = np.select([kind == LOC, kind == CLS], [best_own, best_other], -1)
    return kind, np.where((target >= 0) & ~np.append(taken, True)[target], target, -1)


def _confuse(
    confusion: np.ndarray,
    ious: np.ndarray,
    labels: np.ndarray,
    true_labels: np.ndarray,
    crowd: np.ndarray,
) -> None:
    """Count one image into a confusion matrix.

    Detections and objects of whatever class are paired by falling IoU, down to 0.5. The last row
    counts the detections left over (but those in a crowd), the last column the objects left over.
    """
    free_found, free_true = np.ones(len(labels), dtype=bool), ~crowd
    pairs = np.argwhere((ious >= FOREGROUND_IOU) & ~crowd)
    for d, g in pairs[np.argsort(-ious[pairs[:, 0], pairs[:, 1]], kind="stable")]:
        if free_found[d] and free_true[g]:
            confusion[true_labels[g], labels[d]] += 1
            free_found[d] = free_true[g] = False
    free_found &= ~((ious >= FOREGROUND_IOU) & crowd).any(axis=1)
    np.add.at(confusion[-1], labels[free_found], 1)
    np.add.at(confusion[:, -1], true_labels[free_true], 1)


# ---- shapes ----


def _truth(source: Source) -> Truth:
    image_index = {image["id"]: i for i, image in enumerate(source.images)}
    label_index = {category_id: i for i, category_id in enumerate(source.category_ids)}
    annotations = source.annotations
    return Truth(
        image=np.array([image_index[a["image_id"]] for a in annotations], dtype=np.int64),
        label=np.array([label_index[a["category_id"]] for a in annotations], dtype=np.int64),
        crowd=np.array([bool(a.get("iscrowd", 0)) for a in annotations], dtype=bool),
    )


def _shapes(source: Source, results: Results, task: str) -> Callable:
    """Return the function from rows of detections and of objects to their boxes or masks."""
    if task == "segm":
        sizes = {i["id"]: (i["height"], i["width"]) for i in source.images}
        truth = [to_rle(a["segmentation"], *sizes[a["image_id"]]) for a in source.annotations]
        return lambda found, objects: (
            [results.masks[i] for i in found],
            [truth[i] for i in objects],
        )
    boxes = results.boxes if results.boxes is not None else np.zeros((0, 4))
    truth_boxes = xywh(source.annotations)
    return lambda found, objects: (boxes[found], truth_boxes[objects])


def _ious(found, objects, crowd: np.ndarray) -> np.ndarray:
    if not len(found) or not len(objects):
        return np.zeros((len(found), len(objects)))
    return mask_util.iou(found, objects, crowd.astype(np.uint8).tolist())


def _rows_by_image(image: np.ndarray, num_images: int) -> List[np.ndarray]:
    order = np.argsort(image, kind="stable")
    return np.split(order, np.searchsorted(image[order], np.arange(1, num_images)))


def _rank_in_class(labels: np.ndarray) -> np.ndarray:
    """Return of each how many of its class come before it."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    rank = np.empty(len(labels), dtype=np.int64)
    rank[order] = np.arange(len(labels)) - np.searchsorted(ordered, ordered, side="left")
    return rank
