"""The boxes of a data set, and how well the anchors of a config cover them."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ....errors import UserError
from .source import Source

if TYPE_CHECKING:
    from detectron2.config import CfgNode
    from detectron2.modeling.anchor_generator import DefaultAnchorGenerator

# Bins of the square root of a box's area in pixels, by factors of the fourth root of 2.
SIZE_EDGES = 2.0 ** np.arange(1, 11.25, 0.25)
# Bins of height / width, by the same factor; 1 is in the middle of a bin.
RATIO_EDGES = 2.0 ** np.arange(-4.125, 4.25, 0.25)
IOU_EDGES = np.linspace(0, 1, 21)


class AnchorGrid(NamedTuple):
    """The anchors of a config.

    Args:
        generator (DefaultAnchorGenerator): Detectron2's.
        divisibility (int): divides the sides of a batch, in pixels.
        short_side (int): of a resized image, in pixels; the middle one of ``MIN_SIZE_TRAIN``, or 0
            for no resizing.
        max_size (int): limit of its longer side.
    """

    generator: "DefaultAnchorGenerator"
    divisibility: int
    short_side: int
    max_size: int

    def scale(self, height: int, width: int) -> float:
        """Return the factor by which training resizes an image."""
        if not self.short_side:
            return 1.0
        # As ResizeShortestEdge, whose output is rounded to whole pixels.
        scale = self.short_side / min(height, width)
        return min(scale, self.max_size / max(height, width))

    def size(self, height: int, width: int) -> tuple:
        """Return the height and width of an image in training, in pixels."""
        if not self.short_side:
            return height, width
        from detectron2.data.transforms import ResizeShortestEdge

        return ResizeShortestEdge.get_output_shape(height, width, self.short_side, self.max_size)


class Boxes:
    """The M objects of a data set, without crowds.

    Args:
        source (Source): the data set.
        grid (AnchorGrid): the anchors of a config; None for none.

    Attributes:
        image (ndarray): (M,) index into ``Source.images``.
        label (ndarray): (M,) index into ``Source.class_names``.
        xywh (ndarray): (M, 4) in pixels.
        image_size (ndarray): (M, 2) height and width of their images in pixels.
        size (ndarray): (M,) square root of the area in pixels.
        ratio (ndarray): (M,) height / width.
        scale (ndarray): (M,) factor by which training resizes their images.
        anchor_iou (ndarray): (M,) IoU with the best anchor; None without a config.
    """

    def __init__(self, source: Source, grid: AnchorGrid | None):
        rows = ~source.crowd
        self.image, self.label, self.xywh = (
            a[rows] for a in (source.image, source.label, source.boxes)
        )
        sizes = np.array([[i["height"], i["width"]] for i in source.images], dtype=np.int64)
        self.image_size = sizes[self.image]
        self.size = np.sqrt(self.xywh[:, 2] * self.xywh[:, 3])
        self.ratio = self.xywh[:, 3] / self.xywh[:, 2]
        self.scale, self.anchor_iou = np.ones(len(self.image)), None
        if grid is not None:
            self.scale = np.array([grid.scale(*size) for size in sizes.tolist()])[self.image]
            self.anchor_iou = best_anchor_ious(grid, self.xywh, self.image_size)


def build_anchor_grid(cfg: "CfgNode") -> AnchorGrid:
    """Build a config's anchor generator.

    Args:
        cfg (CfgNode): for a model with an RPN, or a RetinaNet.

    Raises:
        UserError: if the model has no anchors, or rotated ones.
    """
    from detectron2.layers import ShapeSpec
    from detectron2.modeling import (
        META_ARCH_REGISTRY,
        RetinaNet,
        build_anchor_generator,
        build_backbone,
    )
    from detectron2.modeling.anchor_generator import DefaultAnchorGenerator

    # A RetinaNet that another project registered under another name is one as well.
    is_retinanet = issubclass(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE), RetinaNet)
    if not is_retinanet and cfg.MODEL.PROPOSAL_GENERATOR.NAME != "RPN":
        raise UserError(f"{cfg.MODEL.META_ARCHITECTURE} has no axis-aligned anchors")
    names = cfg.MODEL.RETINANET.IN_FEATURES if is_retinanet else cfg.MODEL.RPN.IN_FEATURES
    backbone = build_backbone(cfg, ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN)))
    shapes = backbone.output_shape()
    missing = [name for name in names if name not in shapes]
    if missing:
        raise UserError(
            f"the backbone has no features {', '.join(missing)}; it has {', '.join(shapes)}"
        )
    generator = build_anchor_generator(cfg, [shapes[name] for name in names])
    if not isinstance(generator, DefaultAnchorGenerator):
        raise UserError(
            f"MODEL.ANCHOR_GENERATOR.NAME {cfg.MODEL.ANCHOR_GENERATOR.NAME}: its anchors are "
            "rotated, so they cannot be compared with boxes"
        )
    sizes = sorted(cfg.INPUT.MIN_SIZE_TRAIN)
    return AnchorGrid(
        generator, backbone.size_divisibility, sizes[len(sizes) // 2], cfg.INPUT.MAX_SIZE_TRAIN
    )


def best_anchor_ious(grid: AnchorGrid, boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return each box's IoU with the anchor that fits it best.

    All anchors of one shape have the same size, so the best of them is the one whose center is
    nearest in x and y; only this one is compared.

    Args:
        grid (AnchorGrid): the anchors of a config.
        boxes (ndarray): (N, 4) as x, y, width, height in pixels of the original images.
        sizes (ndarray): (N, 2) height and width of their images in pixels.

    Returns:
        ndarray: (N,) in 0 to 1.
    """
    unique, inverse = np.unique(np.asarray(sizes).reshape(-1, 2), axis=0, return_inverse=True)
    resized = np.array([grid.size(int(h), int(w)) for h, w in unique], dtype=float).reshape(-1, 2)
    inverse = inverse.reshape(-1)
    scale = (resized / unique)[inverse][:, ::-1]  # of x and y
    low = boxes[:, :2] * scale
    high = low + boxes[:, 2:] * scale
    divisor = max(grid.divisibility, 1)
    padded = (np.ceil(resized / divisor) * divisor)[inverse][:, ::-1]

    best = np.zeros(len(boxes))
    for stride, cells in zip(grid.generator.strides, grid.generator.cell_anchors):
        last = np.ceil(padded / stride) - 1
        for anchor in cells.double().numpy():
            offset = (anchor[:2] + anchor[2:]) / 2 + grid.generator.offset * stride
            position = np.round(((low + high) / 2 - offset) / stride).clip(0, last)
            shift = (position + grid.generator.offset) * stride
            best = np.maximum(best, _iou(low, high, shift + anchor[:2], shift + anchor[2:]))
    return best


def _iou(low: np.ndarray, high: np.ndarray, low2: np.ndarray, high2: np.ndarray) -> np.ndarray:
    """Return (N,) IoU of boxes given by their (N, 2) corners."""
    overlap = (np.minimum(high, high2) - np.maximum(low, low2)).clip(0).prod(axis=1)
    union = (high - low).prod(axis=1) + (high2 - low2).prod(axis=1) - overlap
    return overlap / union.clip(1e-9)
