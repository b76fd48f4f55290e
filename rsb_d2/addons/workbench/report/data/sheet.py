"""The PNG sheet of a data set: four charts above some of its annotated images."""

import colorsys
import io
from typing import Any, Dict, List

import numpy as np
from detectron2.data import Metadata
from detectron2.utils.visualizer import Visualizer
from matplotlib.figure import Figure

from .....data.images import BadImageError, read_image
from .....data.opening import image_path
from .....errors import printable
from .....visualization import readable_scale
from ..source import Source, annotations_of, xywh
from .box_stats import (
    IOU_EDGES,
    RATIO_EDGES,
    SIZE_EDGES,
    Boxes,
)

_COLUMNS = 4
_MAX_CLASSES = 30  # bars; the rest is one more
_BLUE = "#2563c9"
_SHORT_SIDE = 300  # images are enlarged to this, so that their labels can be read


def draw_sheet(source: Source, boxes: Boxes, images: List[int]) -> bytes:
    """Draw the sheet.

    Args:
        source (Source): the data set.
        boxes (Boxes): its objects.
        images (list[int]): indices of the images to show.

    Returns:
        bytes: PNG.
    """
    rows = -(-len(images) // _COLUMNS)
    figure = Figure(figsize=(16, 7.6 + 3.3 * rows), layout="constrained")
    num_objects, num_images = len(boxes.label), len(source.images)
    figure.suptitle(f"{source.name}: {num_objects} objects in {num_images} images", fontsize=15)
    charts, gallery = figure.subfigures(2, 1, height_ratios=[7.0, max(3.3 * rows, 0.1)])
    axes = charts.subplots(2, 2)
    _draw_counts(axes[0, 0], source.class_names, boxes.label)
    _draw_histogram(axes[0, 1], boxes.size, SIZE_EDGES, "box size: root of the area (pixels)")
    low, high = axes[0, 1].get_xlim()
    for edge in (32, 96):
        if low < edge < high:
            axes[0, 1].axvline(edge, color="#d9483b", linewidth=1, linestyle=":")
    _draw_histogram(axes[1, 0], boxes.ratio, RATIO_EDGES, "aspect ratio: height / width")
    _draw_anchors(axes[1, 1], boxes.anchor_iou)
    if images:
        for ax in gallery.subplots(rows, _COLUMNS, squeeze=False).flat:
            ax.set_axis_off()
        by_image = annotations_of(source, images)
        for ax, i in zip(gallery.axes, images):
            image = source.images[i]
            ax.set_title(_shorten(printable(image["file_name"])), fontsize=9)
            picture = _draw_image(source, image, by_image[i])
            if picture is None:
                ax.text(0.5, 0.5, "cannot be read", ha="center", va="center")
            else:
                ax.imshow(picture)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=80)
    return content.getvalue()


def _draw_counts(ax, names: List[str], label: np.ndarray) -> None:
    counts = np.bincount(label, minlength=len(names))
    order = np.argsort(-counts, kind="stable")
    shown = order[:_MAX_CLASSES]
    labels, values = [_shorten(names[k], 18) for k in shown], counts[shown].tolist()
    if len(order) > len(shown):
        labels.append(f"{len(order) - len(shown)} others")
        values.append(int(counts[order[_MAX_CLASSES:]].sum()))
    positions = np.arange(len(values))
    bars = ax.bar(positions, values, color=_BLUE)
    ax.set_xticks(positions, labels, rotation=60 if len(labels) > 8 else 0)
    ax.tick_params(axis="x", labelsize="small")
    if len(labels) <= 20:
        ax.bar_label(bars, fontsize="small")
    ax.margins(y=0.1)
    ax.set_title("objects of each class", fontsize=11)


def _draw_histogram(ax, values: np.ndarray, edges: np.ndarray, title: str) -> None:
    values = values.clip(edges[0], edges[-1])
    first, last = np.searchsorted(edges, [values.min(), values.max()])
    bins = edges[max(first - 3, 0) : last + 3]
    ax.hist(values, bins=bins, color=_BLUE, edgecolor="white", lw=0.4)
    ax.set_xlim(bins[0], bins[-1])
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}" if x >= 1 else f"1/{1 / x:g}")
    ax.set_title(title, fontsize=11)


def _draw_anchors(ax, iou: np.ndarray | None) -> None:
    ax.set_title("IoU of each box with its best anchor", fontsize=11)
    if iou is None:
        ax.text(0.5, 0.5, "no config, no anchors:\nwrite --config-file", ha="center", va="center")
        ax.set_axis_off()
        return
    ax.hist(iou, bins=IOU_EDGES, color=_BLUE, edgecolor="white", lw=0.4)
    shares = [f"{(iou >= t).mean():.0%} have {t} or more" for t in (0.7, 0.5, 0.3)]
    ax.text(0.02, 0.96, "\n".join(shares), transform=ax.transAxes, va="top")
    ax.set_xlim(0, 1)


def _draw_image(
    source: Source, image: Dict[str, Any], annotations: List[Dict[str, Any]]
) -> np.ndarray | None:
    try:
        picture = read_image(image_path(source.image_root, image["file_name"]), "RGB")
    except BadImageError:  # the sheet says so
        return None
    visualizer = Visualizer(
        picture,
        Metadata(name="sheet", thing_classes=source.class_names),
        scale=readable_scale(picture, _SHORT_SIDE),
    )
    classes = [source.category_ids.index(a["category_id"]) for a in annotations]
    masks = [a.get("segmentation") for a in annotations]
    corners = xywh(annotations)
    corners[:, 2:] += corners[:, :2]
    drawn = visualizer.overlay_instances(
        boxes=corners,
        masks=masks if all(masks) else None,  # Detectron2 draws those of all or of none
        labels=[source.class_names[k] for k in classes],
        assigned_colors=[_colour(k) for k in classes],
    )
    return drawn.get_image()


def _colour(k: int) -> tuple:
    """Return a bright RGB colour, far on the colour circle from that of the classes beside."""
    return colorsys.hsv_to_rgb((0.58 + k * 0.382) % 1, 0.75, 1.0)


def _shorten(text: str, length: int = 34) -> str:
    return text if len(text) <= length else "..." + text[3 - length :]
