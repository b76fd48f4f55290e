"""The look at a data set before training: an HTML gallery and a PNG sheet."""

import os
import sys
from typing import Any, Dict, List

import numpy as np
from detectron2.config import CfgNode

from .....data import register_coco_json
from .....errors import UserError
from ..output import (
    check_output,
    progress,
    render,
    write_whole,
)
from ..pictures import (
    BUDGET,
    outline,
    rounded,
    thumbnail,
)
from ..source import Source, annotations_of, to_rle
from .anchors import AnchorGrid, build_anchor_grid
from .box_stats import (
    ANCHOR_IOUS,
    IOU_EDGES,
    RATIO_EDGES,
    SIZE_EDGES,
    collect_boxes,
    find_oddities,
    summarise,
)
from .sheet import draw_sheet

_SHEET_IMAGES = 16
_ODD_IMAGES = 12  # of each kind of oddity, beyond those drawn by chance


def browse(
    source: Source,
    output: str,
    *,
    cfg: CfgNode | None = None,
    num_images: int = 120,
    seed: int = 0,
) -> Dict[str, Any]:
    """Write the gallery, and beside it, with the suffix ``.png``, the sheet.

    Args:
        source (Source): the data set.
        output (str): HTML file to write.
        cfg (CfgNode): whose anchors and whose resizing; None for neither.
        num_images (int): how many images of the gallery are drawn by chance; odd ones come on top.
        seed (int): of that.

    Returns:
        dict: what the page shows.

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
    print("reading boxes", file=sys.stderr)
    boxes = collect_boxes(source, grid)
    oddities = find_oddities(source, boxes)
    notes += [f"{len(images)} images {what}." for what, images in oddities.items()]
    unused = [n for k, n in enumerate(source.class_names) if not (boxes.label == k).any()]
    if unused:
        notes.append(f"{len(unused)} classes have no object: {', '.join(unused[:10])}.")

    drawn = _draw_lots(len(source.images), boxes, num_images, seed)
    odd = [i for images in oddities.values() for i in images[:_ODD_IMAGES]] if num_images else []
    images = _describe(source, list(dict.fromkeys([*odd, *drawn])), oddities)
    page = dict(
        name=source.name,
        annotations=os.path.basename(source.json_file),
        config=grid and dict(shortSide=grid.short_side, maxSize=grid.max_size),
        classes=source.class_names,
        counts=dict(
            images=len(source.images),
            objects=len(boxes.label),
            crowds=len(source.annotations) - len(boxes.label),
            masks=sum(bool(a.get("segmentation")) for a in source.annotations),
        ),
        notes=notes,
        stats=summarise(boxes, len(source.class_names)),
        anchorIous=ANCHOR_IOUS,
        edges=dict(sizes=SIZE_EDGES.tolist(), ratios=RATIO_EDGES.tolist(), ious=IOU_EDGES.tolist()),
        oddities={what: len(images) for what, images in oddities.items()},
        images=images,
    )
    print("drawing the sheet", file=sys.stderr)
    write_whole(sheet, draw_sheet(source, boxes, drawn[:_SHEET_IMAGES]))
    write_whole(output, render("browse", f"Data set: {source.name}", page))
    return page


def _problems_with_config(cfg: CfgNode, name: str) -> List[str]:
    """Return what training with this config would stop at, e.g. its number of classes."""
    if name not in [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]:
        return []
    try:
        register_coco_json(cfg)
    except UserError as e:
        return [f"Training would stop: {e}"]
    return []


def _anchor_grid(cfg: CfgNode, notes: List[str]) -> AnchorGrid | None:
    try:
        return build_anchor_grid(cfg)
    except UserError as e:
        notes.append(f"The anchors are not shown: {e}.")
        return None


def _draw_lots(num_images: int, boxes, count: int, seed: int) -> List[int]:
    """Return images drawn by chance, of which some have each class if there is room."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(num_images)
    rank = np.empty(num_images, dtype=np.int64)
    rank[order] = np.arange(num_images)
    chosen: Dict[int, None] = {}
    for k in np.unique(boxes.label):
        chosen[int(order[rank[boxes.image[boxes.label == k]].min()])] = None
    chosen.update(dict.fromkeys(order.tolist()))
    return list(chosen)[:count]


def _describe(
    source: Source, chosen: List[int], oddities: Dict[str, List[int]]
) -> List[Dict[str, Any]]:
    label = {category_id: i for i, category_id in enumerate(source.category_ids)}
    by_image = annotations_of(source, chosen)
    odd = {what: set(images) for what, images in oddities.items()}
    described, size = [], 0
    for i in progress("images")(chosen):
        image = source.images[i]
        objects = []
        for annotation in by_image[i]:
            entry = dict(
                id=annotation["id"],
                c=label[annotation["category_id"]],
                b=rounded(np.array(annotation["bbox"])),
            )
            if annotation.get("segmentation"):
                mask = to_rle(annotation["segmentation"], image["height"], image["width"])
                entry["p"] = outline(mask)
            if annotation.get("iscrowd", 0):
                entry["crowd"] = 1
            objects.append(entry)
        entry = dict(
            file=image["file_name"],
            w=image["width"],
            h=image["height"],
            src=thumbnail(source, image),
            truth=objects,
            odd=[n for n, what in enumerate(odd) if i in odd[what]],
        )
        size += sum(len(str(value)) for value in entry.values())
        if size > BUDGET:
            break
        described.append(entry)
    return described
