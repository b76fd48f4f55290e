"""The page of a data set before training: an HTML gallery with statistics, and a PNG sheet."""

import os
import sys
from typing import TYPE_CHECKING, Any, Dict, List

import numpy as np

from ....errors import UserError, first
from ....files import whole_file
from .boxes import IOU_EDGES, RATIO_EDGES, SIZE_EDGES, AnchorGrid, Boxes, build_anchor_grid
from .html_page import check_output, describe_images, outline, rounded, write_page
from .sheet import draw_sheet
from .source import Source, has_mask

if TYPE_CHECKING:
    from detectron2.config import CfgNode

_ANCHOR_IOUS = (0.3, 0.5, 0.7)
_TINY = 4.0  # pixels in training; an object with a thinner side is hardly learned
_SHEET_IMAGES = 16
_ODD_IMAGES = 12  # of each kind, in addition to the sampled images
# Findings of hotcoco's health check that refer to annotations, and those that are passed on.
_ANNOTATION_FINDINGS = {
    "near_duplicate": "with two boxes of one class on one another",
    "extreme_aspect_ratio": "with a box more than 20 times as long as wide",
}
_OTHER_FINDINGS = ("low_instance_category",)


def browse(
    source: Source,
    output: str,
    *,
    cfg: "CfgNode | None" = None,
    num_images: int = 120,
    seed: int = 0,
) -> Dict[str, Any]:
    """Write the gallery and, next to it with the suffix ``.png``, the sheet.

    Args:
        source (Source): the data set.
        output (str): HTML file to write.
        cfg (CfgNode): determines anchors and the resizing of images; None for neither.
        num_images (int): number of sampled images in the gallery; unusual images are added.
        seed (int): seed of the sample.

    Returns:
        dict: the data of the page.

    Raises:
        UserError: if the files cannot be written.
    """
    sheet = output[: -len(".html")] + ".png"
    check_output(output, ".html")
    check_output(sheet, ".png")
    notes = list(source.warnings)
    grid = None
    if cfg is not None:
        notes += _problems_with_config(cfg, source.name)
        grid = _anchor_grid(cfg, notes)
    boxes = Boxes(source, grid)
    found = {w["code"]: w for w in source.coco.healthcheck()["warnings"]}
    oddities = _find_oddities(source, boxes, found)
    notes += [f"{len(images)} images {what}." for what, images in oddities.items()]
    unused = [n for k, n in enumerate(source.class_names) if not (boxes.label == k).any()]
    if unused:
        notes.append(f"{len(unused)} classes have no object: {first(unused, 10)}.")
    notes += [found[code]["message"] for code in _OTHER_FINDINGS if code in found]

    sample = _sample(len(source.images), boxes, num_images, seed)
    odd = [i for images in oddities.values() for i in images[:_ODD_IMAGES]] if num_images else []
    classes = range(len(source.class_names))
    page = dict(
        name=source.name,
        annotations=os.path.basename(source.json_file),
        config=grid and dict(shortSide=grid.short_side, maxSize=grid.max_size),
        classes=source.class_names,
        counts=dict(
            images=len(source.images),
            objects=len(boxes.label),
            crowds=int(source.crowd.sum()),
            masks=int(source.has_mask.sum()),
        ),
        notes=notes,
        # The last one is of all classes.
        stats=[
            _summarize(boxes, rows) for rows in (*(boxes.label == k for k in classes), slice(None))
        ],
        anchorIous=_ANCHOR_IOUS,
        edges=dict(sizes=SIZE_EDGES.tolist(), ratios=RATIO_EDGES.tolist(), ious=IOU_EDGES.tolist()),
        oddities={what: len(images) for what, images in oddities.items()},
        images=describe_images(
            source, list(dict.fromkeys([*odd, *sample])), lambda i: _describe(source, oddities, i)
        ),
    )
    print("drawing the sheet", file=sys.stderr)
    with whole_file(sheet) as f:
        f.write(draw_sheet(source, boxes, sample[:_SHEET_IMAGES]))
    write_page(output, "browse", f"Data set: {source.name}", page)
    return page


def _problems_with_config(cfg: "CfgNode", name: str) -> List[str]:
    """Return the error that a training with this config would stop at, e.g. NUM_CLASSES."""
    if name not in [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]:
        return []
    from ....data import register_coco_json

    try:
        register_coco_json(cfg)
    except UserError as e:
        return [f"Training would stop: {e}"]
    return []


def _anchor_grid(cfg: "CfgNode", notes: List[str]) -> AnchorGrid | None:
    try:
        return build_anchor_grid(cfg)
    except UserError as e:
        notes.append(f"The anchors are not shown: {e}.")
        return None


# ---- statistics ----


def _summarize(boxes: Boxes, rows: Any) -> Dict[str, Any]:
    """Return the statistics of some objects.

    Returns:
        dict: ``objects``, ``images``, ``size`` and ``ratio`` (medians), ``sizes``, ``ratios`` and
        ``ious`` (histograms), and ``cover``: the share of boxes whose best anchor has an IoU of at
        least 0.3, 0.5, 0.7, for all, small, medium and large boxes.
    """
    size, ratio = boxes.size[rows], boxes.ratio[rows]
    summary = dict(
        objects=len(size),
        images=len(np.unique(boxes.image[rows])),
        size=float(np.median(size)) if len(size) else None,
        ratio=float(np.median(ratio)) if len(size) else None,
        sizes=_histogram(size, SIZE_EDGES),
        ratios=_histogram(ratio, RATIO_EDGES),
    )
    if boxes.anchor_iou is not None:
        iou, group = boxes.anchor_iou[rows], np.digitize(size, [32, 96])
        summary["ious"] = _histogram(iou, IOU_EDGES)
        summary["cover"] = [
            [float((part >= t).mean()) if len(part) else None for t in _ANCHOR_IOUS]
            for part in (iou, *(iou[group == g] for g in range(3)))
        ]
    return summary


def _histogram(values: np.ndarray, edges: np.ndarray) -> List[int]:
    return np.histogram(values.clip(edges[0], edges[-1]), edges)[0].tolist()


def _find_oddities(source: Source, boxes: Boxes, found: Dict[str, Any]) -> Dict[str, List[int]]:
    """Return the images that a person should look at, by the reason."""
    tiny = boxes.xywh[:, 2:].min(axis=1) * boxes.scale < _TINY
    complete = (boxes.xywh[:, 2:] >= boxes.image_size[:, ::-1] - 1).all(axis=1)
    annotated = np.isin(np.arange(len(source.images)), source.image)
    oddities = {
        "without any annotation": np.flatnonzero(~annotated),
        f"with a box thinner than {_TINY:.0f} pixels in training": boxes.image[tiny],
        "with a box as large as the image": boxes.image[complete],
    }
    for code, what in _ANNOTATION_FINDINGS.items():
        ids = found[code]["affected_ids"] if code in found else []
        oddities[what] = source.image[np.isin(source.ids, ids)]
    return {what: np.unique(images).tolist() for what, images in oddities.items() if len(images)}


# ---- images ----


def _sample(num_images: int, boxes: Boxes, count: int, seed: int) -> List[int]:
    """Return random images; every class appears in one of them if there is room."""
    order = np.random.default_rng(seed).permutation(num_images)
    rank = np.argsort(order)[boxes.image]
    first_of_class = [order[rank[boxes.label == k].min()] for k in np.unique(boxes.label)]
    return list(dict.fromkeys(map(int, [*first_of_class, *order])))[:count]


def _describe(source: Source, oddities: Dict[str, List[int]], image: int) -> Dict[str, Any]:
    objects = []
    for annotation in source.annotations(image):
        label = source.class_of[annotation["category_id"]]
        entry = dict(id=annotation["id"], c=label, b=rounded(annotation["bbox"]))
        if has_mask(annotation):
            entry["p"] = outline(source.coco.ann_to_rle(annotation))
        if annotation.get("iscrowd", 0):
            entry["crowd"] = 1
        objects.append(entry)
    return dict(
        truth=objects, odd=[n for n, found in enumerate(oddities.values()) if image in found]
    )
