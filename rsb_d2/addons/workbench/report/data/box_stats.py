"""Counts, sizes and shapes of a data set's boxes, and what looks like a mistake in them."""

from typing import Any, Dict, List, NamedTuple

import numpy as np
import pycocotools.mask as mask_util

from ..source import Source, xywh
from .anchors import AnchorGrid, best_anchor_ious

ANCHOR_IOUS = (0.3, 0.5, 0.7)
# Of a box's size, the root of its area, in pixels; by factors of the fourth root of 2.
SIZE_EDGES = 2.0 ** np.arange(1, 11.25, 0.25)
# Of height / width, by factors of the fourth root of 2; 1 is in the middle of a bin.
RATIO_EDGES = 2.0 ** np.arange(-4.125, 4.25, 0.25)
IOU_EDGES = np.linspace(0, 1, 21)

_TINY = 4.0  # pixels: a side below this, as the model sees it, is hardly learned
_DUPLICATE_IOU = 0.9


class Boxes(NamedTuple):
    """The M objects of a data set, without crowds.

    Args:
        image (np.ndarray): (M,) of int, index into ``Source.images``.
        label (np.ndarray): (M,) of int, index into ``Source.class_names``.
        xywh (np.ndarray): (M, 4) in pixels.
        image_size (np.ndarray): (M, 2) height and width of their images in pixels.
        anchor_iou (np.ndarray): (M,) IoU with the best anchor; None without a config.
        scale (np.ndarray): (M,) by what training resizes their images.
    """

    image: np.ndarray
    label: np.ndarray
    xywh: np.ndarray
    image_size: np.ndarray
    anchor_iou: np.ndarray | None
    scale: np.ndarray

    @property
    def size(self) -> np.ndarray:
        """(M,) root of the area in pixels."""
        return np.sqrt(self.xywh[:, 2] * self.xywh[:, 3])

    @property
    def ratio(self) -> np.ndarray:
        """(M,) height / width."""
        return self.xywh[:, 3] / self.xywh[:, 2]


def collect_boxes(source: Source, grid: AnchorGrid | None) -> Boxes:
    """Collect the objects of a data set.

    Args:
        source (Source): the data set.
        grid (AnchorGrid): of a config; None for none.

    Returns:
        Boxes
    """
    keys = ("image_id", "category_id", "bbox")  # without masks, which may be gigabytes
    objects = [{k: a[k] for k in keys} for a in source.annotations if not a.get("iscrowd", 0)]
    image_index = {image["id"]: i for i, image in enumerate(source.images)}
    label_index = {category_id: i for i, category_id in enumerate(source.category_ids)}
    image = np.array([image_index[a["image_id"]] for a in objects], dtype=np.int64)
    sizes = np.array([[i["height"], i["width"]] for i in source.images], dtype=np.int64)
    boxes = xywh(objects)
    scales = np.ones(len(sizes)) if grid is None else np.array([grid.scale(*s) for s in sizes])
    return Boxes(
        image=image,
        label=np.array([label_index[a["category_id"]] for a in objects], dtype=np.int64),
        xywh=boxes,
        image_size=sizes[image],
        anchor_iou=None if grid is None else best_anchor_ious(grid, boxes, sizes[image]),
        scale=scales[image],
    )


def summarise(boxes: Boxes, num_classes: int) -> List[Dict[str, Any]]:
    """Return of each class, and last of all together, what the page shows.

    Args:
        boxes (Boxes): of a data set.
        num_classes (int): K.

    Returns:
        list[dict]: K + 1 of them, with ``objects``, ``images``, ``size`` and ``ratio`` (medians),
            ``sizes``, ``ratios`` and ``ious`` (histograms), and ``cover``: the share of boxes
            whose best anchor has IoU 0.3, 0.5, 0.7 or more, of all, small, medium and large ones.
    """
    rows = [np.flatnonzero(boxes.label == k) for k in range(num_classes)]
    return [_summarise(boxes, r) for r in [*rows, np.arange(len(boxes.label))]]


def _summarise(boxes: Boxes, rows: np.ndarray) -> Dict[str, Any]:
    size, ratio = boxes.size[rows], boxes.ratio[rows]
    summary = dict(
        objects=len(rows),
        images=len(set(boxes.image[rows].tolist())),
        size=float(np.median(size)) if len(rows) else None,
        ratio=float(np.median(ratio)) if len(rows) else None,
        sizes=_histogram(size, SIZE_EDGES),
        ratios=_histogram(ratio, RATIO_EDGES),
    )
    if boxes.anchor_iou is not None:
        iou = boxes.anchor_iou[rows]
        group = np.digitize(size, [32, 96])
        summary["ious"] = _histogram(iou, IOU_EDGES)
        summary["cover"] = [_cover(iou), *(_cover(iou[group == g]) for g in range(3))]
    return summary


def _histogram(values: np.ndarray, edges: np.ndarray) -> List[int]:
    return np.histogram(values.clip(edges[0], edges[-1]), edges)[0].tolist()


def _cover(iou: np.ndarray) -> List[float | None]:
    return [float((iou >= t).mean()) if len(iou) else None for t in ANCHOR_IOUS]


def find_oddities(source: Source, boxes: Boxes) -> Dict[str, List[int]]:
    """Find images that a person should look at.

    Args:
        source (Source): the data set.
        boxes (Boxes): its objects.

    Returns:
        dict[str, list[int]]: indices of images, by what is odd about them, in words.
    """
    annotated = np.zeros(len(source.images), dtype=bool)
    image_index = {image["id"]: i for i, image in enumerate(source.images)}
    annotated[[image_index[a["image_id"]] for a in source.annotations]] = True
    tiny = boxes.xywh[:, 2:].min(axis=1) * boxes.scale < _TINY
    whole = boxes.xywh[:, 2:] >= boxes.image_size[:, ::-1] - 1
    oddities = {
        "without any annotation": np.flatnonzero(~annotated),
        "with two boxes of one class on one another": _with_duplicates(boxes),
        f"with a box thinner than {_TINY:.0f} pixels in training": boxes.image[tiny],
        "with a box as large as the image": boxes.image[whole.all(axis=1)],
    }
    return {what: sorted(set(map(int, images))) for what, images in oddities.items() if len(images)}


def _with_duplicates(boxes: Boxes) -> List[int]:
    order = np.lexsort((boxes.label, boxes.image))
    keys = np.stack([boxes.image, boxes.label], axis=1)[order]
    starts = np.flatnonzero(np.r_[True, (keys[1:] != keys[:-1]).any(axis=1), True])
    images = []
    for start, end in zip(starts[:-1], starts[1:]):
        if end - start < 2:
            continue
        group = boxes.xywh[order[start:end]]
        ious = mask_util.iou(group, group, [0] * len(group))
        if (np.triu(ious, 1) >= _DUPLICATE_IOU).any():
            images.append(int(boxes.image[order[start]]))
    return images
