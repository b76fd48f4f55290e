"""The PNG sheet of a data set: four charts and some of its annotated images."""

import colorsys
import io
from typing import List, Tuple

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ....data.images import BadImageError, read_image
from ....data.opening import image_path
from ....errors import printable
from ....visualization import (
    MAX_LABELS,
    Cell,
    Color,
    drawable,
    drawn_size,
    image_grid,
    make_plain,
    text_mask,
)
from .boxes import IOU_EDGES, RATIO_EDGES, SIZE_EDGES, Boxes
from .source import Source, has_mask

_COLUMNS = 4
_MAX_CLASSES = 30  # with a bar each; all others share one
_BLUE = "#2563c9"
_BLACK = (0, 0, 0)
_WIDTH, _MARGIN = 1600, 8  # pixels
_LABEL_SIZE = 11  # of the font, in pixels
# Height and width in pixels; images are drawn at this size, so that their labels can be read.
_MAX_SIZE = 300, (_WIDTH - _MARGIN) // _COLUMNS - _MARGIN - 1


def draw_sheet(source: Source, boxes: Boxes, images: List[int]) -> bytes:
    """Draw the sheet of a data set.

    Args:
        source (Source): the data set.
        boxes (Boxes): its objects.
        images (list[int]): indices of the images to show.

    Returns:
        bytes: PNG.
    """
    charts = _draw_charts(source, boxes)
    sheet = charts
    if images:
        cells = [_draw_image(source, i) for i in images]
        widest = max(picture.shape[1] for picture, _, _ in cells)
        gallery = image_grid(cells, max(_COLUMNS, (_WIDTH - _MARGIN) // (widest + _MARGIN)))
        left = (_WIDTH - gallery.shape[1]) // 2
        sides = [(0, 0), (left, _WIDTH - gallery.shape[1] - left), (0, 0)]
        sheet = np.concatenate([charts, np.pad(gallery, sides, constant_values=255)])
    content = io.BytesIO()
    Image.fromarray(sheet).save(content, "PNG")
    return content.getvalue()


def _draw_charts(source: Source, boxes: Boxes) -> np.ndarray:
    figure = Figure(figsize=(_WIDTH / 100, 7.6), dpi=100, layout="constrained")
    num_objects, num_images = len(boxes.label), len(source.images)
    figure.suptitle(f"{source.name}: {num_objects} objects in {num_images} images", fontsize=15)
    axes = figure.subplots(2, 2)
    _draw_counts(axes[0, 0], source.class_names, boxes.label)
    _draw_histogram(
        axes[0, 1], boxes.size, SIZE_EDGES, "box size: square root of the area (pixels)"
    )
    low, high = axes[0, 1].get_xlim()
    for edge in (32, 96):
        if low < edge < high:
            axes[0, 1].axvline(edge, color="#d9483b", linewidth=1, linestyle=":")
    _draw_histogram(axes[1, 0], boxes.ratio, RATIO_EDGES, "aspect ratio: height / width")
    _draw_anchors(axes[1, 1], boxes.anchor_iou)
    make_plain(figure)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3]


def _draw_counts(ax, names: List[str], label: np.ndarray) -> None:
    counts = np.bincount(label, minlength=len(names))
    order = np.argsort(-counts, kind="stable")
    shown = order[:_MAX_CLASSES]
    labels, values = [drawable(_shorten(names[k], 18)) for k in shown], counts[shown].tolist()
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
    values = values[~np.isnan(values)].clip(edges[0], edges[-1])
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
        ax.text(0.5, 0.5, "anchors need a config:\nwrite --config-file", ha="center", va="center")
        ax.set_axis_off()
        return
    ax.hist(iou, bins=IOU_EDGES, color=_BLUE, edgecolor="white", lw=0.4)
    shares = [f"{(iou >= t).mean():.0%} have {t} or more" for t in (0.7, 0.5, 0.3)]
    ax.text(0.02, 0.96, "\n".join(shares), transform=ax.transAxes, va="top")
    ax.set_xlim(0, 1)


def _draw_image(source: Source, index: int) -> Cell:
    image = source.images[index]
    name = _shorten(printable(image["file_name"]))
    try:
        picture = read_image(image_path(source.image_root, image["file_name"]), "RGB")
    except BadImageError:
        blank = np.full((_MAX_SIZE[0] // 4, _MAX_SIZE[1], 3), 220, dtype=np.uint8)
        return blank, f"{name}: cannot be read", _BLACK
    size = drawn_size(*picture.shape[:2], *_MAX_SIZE)
    return _draw_objects(source, index, picture, size), name, _BLACK


def _draw_objects(
    source: Source, index: int, picture: np.ndarray, size: Tuple[int, int]
) -> np.ndarray:
    """Resize an image to (height, width), and draw masks, boxes and class names on it."""
    height, width = picture.shape[:2]
    scale = np.array([size[1] / width, size[0] / height])
    drawn = cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA)
    annotations = source.annotations(index)
    for annotation in annotations:
        color = _color(source.class_of[annotation["category_id"]])
        if has_mask(annotation):
            mask = cv2.resize(source.coco.ann_to_mask(annotation), size[::-1])
            drawn[mask > 0] = (drawn[mask > 0] / 2 + np.array(color) / 2).astype(np.uint8)
        x, y, w, h = annotation["bbox"]
        low, high = np.array([x, y]) * scale, np.array([x + w, y + h]) * scale
        corners = [tuple(map(int, corner.clip(0, size[::-1]))) for corner in (low, high)]
        cv2.rectangle(drawn, *corners, color, 1, cv2.LINE_AA)
    for annotation in annotations if len(annotations) <= MAX_LABELS else ():
        label = source.class_of[annotation["category_id"]]
        left, top = (np.array(annotation["bbox"][:2]) * scale).astype(int)
        _write_label(drawn, source.class_names[label], left, top, _color(label))
    return drawn


def _write_label(drawn: np.ndarray, text: str, left: int, top: int, color: Color) -> None:
    """Write a class name on a dark background, moved into the image."""
    ink = text_mask(_shorten(text, 24), _LABEL_SIZE)[: drawn.shape[0], : drawn.shape[1], None]
    left = min(max(left, 0), drawn.shape[1] - ink.shape[1])
    top = min(max(top, 0), drawn.shape[0] - ink.shape[0])
    part = drawn[top : top + ink.shape[0], left : left + ink.shape[1]]
    part[:] = (part * 0.3 * (1 - ink) + np.float32(color) * ink).astype(np.uint8)


def _color(k: int) -> Color:
    """Return a bright RGB color with a hue far from those of the neighboring classes."""
    red, green, blue = colorsys.hsv_to_rgb((0.58 + k * 0.382) % 1, 0.75, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _shorten(text: str, length: int = 34) -> str:
    return text if len(text) <= length else "..." + text[3 - length :]
