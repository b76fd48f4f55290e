"""RoIAlign of channels-last features as weighted sums of their cells."""

from typing import Any, List, NamedTuple, Tuple

import torch
import torch.nn.functional as F
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import (
    ROIPooler,
    assign_boxes_to_levels,
    convert_boxes_to_pooler_format,
)
from detectron2.structures import Boxes
from torch import nn

from ...utils import has_hooks


class AxisWeights(NamedTuple):
    """The cells of one axis that each bin of each region sums, and their weights.

    Args:
        first (Tensor): (R, B), int32: the first cell of the bin.
        num (Tensor): (R,), int32: the most cells, from the first on, that any of the bins sums.
        weights (Tensor): (R, B, largest ``num``): of these cells.
    """

    first: torch.Tensor
    num: torch.Tensor
    weights: torch.Tensor


def axis_weights(
    start: torch.Tensor, size: torch.Tensor, length: int, bins: int, sampling_ratio: int
) -> AxisWeights:
    """Compute RoIAlign along one axis as weights of cells.

    A bin is the mean of samples at equal distances, each a linear interpolation between two cells;
    samples outside by more than a cell count as 0. This equals torchvision's ``roi_align``, which
    is separable (https://arxiv.org/abs/1703.06870, section 3).

    Args:
        start, size (Tensor): (R,), of each region, in cells; the center of cell i is at i.
        length (int): number of cells.
        bins (int): B, number of bins of a region.
        sampling_ratio (int): samples of a bin; 0 for as many as the bin has cells, rounded up.

    Returns:
        AxisWeights
    """
    size = (size / bins)[:, None]
    samples = torch.full_like(size, sampling_ratio) if sampling_ratio > 0 else size.ceil()
    samples = samples.clamp_(min=0)
    distance = size / samples.clamp(min=1)
    origin = start[:, None] + torch.arange(bins, device=start.device) * size

    # (R, B, S), where regions with fewer samples than others have some that do not count.
    nth = torch.arange(max(int(samples.max()), 1), device=start.device)
    position = origin[:, :, None] + (nth + 0.5) * distance[:, :, None]
    is_sample = (nth < samples[:, :, None]) & (position >= -1) & (position <= length)
    share = is_sample / samples.clamp(min=1)[:, :, None]
    # The samples of a region with a negative size go backwards.
    lowest = origin + torch.minimum(0.5 * distance, size - 0.5 * distance)
    first = lowest.clamp_(0, length - 1).long()
    position = position.clamp_(0, length - 1).where(nth < samples[:, :, None], first[:, :, None])
    cell = position.long()
    upper = position - cell
    cell -= first[:, :, None]
    num = cell.flatten(1).amax(dim=1) + 2
    weights = start.new_zeros(*origin.shape, int(num.max()))
    weights.scatter_add_(2, cell, share * (1 - upper)).scatter_add_(2, cell + 1, share * upper)
    return AxisWeights(first.int(), num.int(), weights)


def roi_align_channels_last(
    features: torch.Tensor,
    rois: torch.Tensor,
    pooler: ROIAlign,
    out: torch.Tensor,
    out_rows: torch.Tensor,
) -> None:
    """torchvision's ``roi_align``, with several threads, and each cell read once per bin.

    Args:
        features (Tensor): (N, C, H, W), channels-last.
        rois (Tensor): (R, 5), float32: image in the batch, x0, y0, x1, y1 in pixels.
        pooler (ROIAlign): size of the output (B_y, B_x), scale, sampling ratio and alignment.
        out (Tensor): (M, B_y, B_x, C), to write to.
        out_rows (Tensor): (R,), integers: the row of ``out`` of each region.
    """
    channels, height, width = features.shape[1:]
    table = features.permute(0, 2, 3, 1).reshape(-1, channels)
    if not len(rois):  # stay in the graph: features without regions get zero gradients
        out.index_copy_(0, out_rows, table[:0].view(0, *out.shape[1:]))
        return
    bins_y, bins_x = pooler.output_size
    corners = rois[:, 1:] * pooler.spatial_scale - (0.5 if pooler.aligned else 0.0)
    size = corners[:, 2:] - corners[:, :2]
    if not pooler.aligned:
        size = size.clamp(min=1)
    xs = axis_weights(corners[:, 0], size[:, 0], width, bins_x, pooler.sampling_ratio)
    ys = axis_weights(corners[:, 1], size[:, 1], height, bins_y, pooler.sampling_ratio)
    image = rois[:, 0].int()

    # Group the regions whose bins have equal numbers of cells.
    cells, weights, lengths, order = [], [], [], []
    kinds, kind_of = torch.stack([ys.num, xs.num], 1).unique(dim=0, return_inverse=True)
    for kind, (rows, columns) in enumerate(kinds.tolist()):
        these = (kind_of == kind).nonzero()[:, 0]
        y = ys.first[these, :, None] + torch.arange(rows, dtype=torch.int32, device=rois.device)
        x = xs.first[these, :, None] + torch.arange(columns, dtype=torch.int32, device=rois.device)
        # Beyond the last cell weights are 0, but an index must be valid.
        y = (y.clamp_(max=height - 1) + image[these, None, None] * height) * width
        x.clamp_(max=width - 1)
        cells.append((y[:, :, None, :, None] + x[:, None, :, None, :]).view(-1))
        of_cells = (
            ys.weights[these, :, None, :rows, None] * xs.weights[these, None, :, None, :columns]
        )
        weights.append(of_cells.view(-1))
        lengths.append(image.new_full((len(these) * bins_y * bins_x,), rows * columns))
        order.append(these)
    ends = torch.cat(lengths).cumsum(0, dtype=torch.int32)
    pooled = F.embedding_bag(
        torch.cat(cells),
        table,
        F.pad(ends[:-1], (1, 0)),
        mode="sum",
        per_sample_weights=torch.cat(weights).to(table.dtype),
    )
    out.index_copy_(0, out_rows[torch.cat(order)], pooled.view(-1, *out.shape[1:]))


class ChannelsLastROIPooler(ROIPooler):
    """``ROIPooler`` for the CPU, whose output is channels-last as its input is.

    Training gains the most: the backward pass of torchvision's operator uses one thread.
    """

    def __init__(self, pooler: ROIPooler):
        """
        Args:
            pooler (ROIPooler): one for which :meth:`takes` holds.
        """
        nn.Module.__init__(self)
        vars(self).update(vars(pooler))

    @staticmethod
    def takes(pooler: nn.Module) -> bool:
        """Whether a module is a pooler of ``ROIAlign``, stock or channels-last, without hooks."""
        return (
            type(pooler) in (ROIPooler, ChannelsLastROIPooler)
            and all(type(level) is ROIAlign for level in pooler.level_poolers)
            and not has_hooks(pooler)
        )

    def forward(self, x: List[torch.Tensor], box_lists: List[Boxes]) -> torch.Tensor:
        """As the stock method; in mixed precision it also adds up gradients in float32."""
        dtype = x[0].dtype
        if torch.is_grad_enabled() and dtype != torch.float32:
            x = [feature.float() for feature in x]
        num = sum(len(boxes) for boxes in box_lists)
        pooled = x[0].new_empty(num, *self.output_size, x[0].shape[1])
        if box_lists:
            boxes = convert_boxes_to_pooler_format(box_lists)
            levels = assign_boxes_to_levels(
                *(box_lists, self.min_level, self.max_level),
                *(self.canonical_box_size, self.canonical_level),
            )
            for level, pooler in enumerate(self.level_poolers):
                of_level = (levels == level).nonzero()[:, 0]
                roi_align_channels_last(x[level], boxes[of_level], pooler, pooled, of_level)
        return pooled.permute(0, 3, 1, 2).to(dtype)


def pooled_in_float32(module: nn.Module, inputs: Tuple[Any, ...]) -> Tuple[Any, ...]:
    """A forward pre-hook of a pooler, whose operator may not take the dtype of the features."""
    features, box_lists = inputs
    return [feature.float() for feature in features], box_lists


def pool_channels_last(model: nn.Module) -> None:
    """Replace the stock poolers of a model on the CPU by :class:`ChannelsLastROIPooler`."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if ChannelsLastROIPooler.takes(child):
                setattr(parent, name, ChannelsLastROIPooler(child))
