"""Detectron2's inference as dataflow alone, without a branch on a value, for ``torch.export``.

Detectron2 asks tensors for their content on the way (whether all boxes are finite, how many there
are), which a graph cannot. What is computed here is the same, by the detector's own modules.
"""

from typing import Dict, List, Tuple

import torch
import torch.nn.functional as F
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from torch import nn

from ...errors import UserError
from ...modeling.openmmlab import OpenMMLabCascadeROIHeads, OpenMMLabRetinaNet
from .nms import batched_nms_in_double

_HEADS = (StandardROIHeads, CascadeROIHeads, OpenMMLabCascadeROIHeads)


def make_dataflow(model: nn.Module) -> nn.Module:
    """Wrap a detector for ``torch.export``.

    Args:
        model (nn.Module): as for :func:`rsb_d2.addons.export.make_traceable`.

    Returns:
        nn.Module: its ``forward`` takes and returns what that of ``make_traceable`` does.

    Raises:
        UserError: for heads that are not Detectron2's own or this project's.
    """
    if isinstance(model, RetinaNet):
        return _RetinaNet(model).eval()
    if isinstance(model, GeneralizedRCNN) and type(model.roi_heads) in _HEADS:
        return _RCNN(model).eval()
    heads = type(getattr(model, "roi_heads", model)).__name__
    raise UserError(f"{heads} cannot be exported with torch.export: name a file in .onnx")


def smallest_side(model: nn.Module) -> int:
    """The shortest side, in pixels, of an image that an exported program takes.

    Its coarsest features have more than one row and one column then: ``torch.export`` makes
    another program for sides of 1.

    Args:
        model (nn.Module): as for :func:`make_dataflow`.
    """
    with_anchors = model if isinstance(model, RetinaNet) else model.proposal_generator
    return max(with_anchors.anchor_generator.strides) + 1


class _Dataflow(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> Tuple[torch.Tensor, ...]:
        height, width = image.shape[:2]
        model, size = self.model, (height, width)
        normalised = (image.permute(2, 0, 1).float() - model.pixel_mean) / model.pixel_std
        divisor = max(model.backbone.size_divisibility, 1)
        padded = F.pad(normalised, (0, -width % divisor, 0, -height % divisor))
        return self.detect(model.backbone(padded[None]), size)

    def detect(self, features: Dict[str, torch.Tensor], size: Tuple) -> Tuple[torch.Tensor, ...]:
        raise NotImplementedError


class _RCNN(_Dataflow):
    def detect(self, features: Dict[str, torch.Tensor], size: Tuple) -> Tuple[torch.Tensor, ...]:
        heads = self.model.roi_heads
        boxes, scores = self._run_box_heads(features, self._propose(features, size), size)
        outputs = _without_empty(*_best(boxes, scores, heads.box_predictor))
        if not heads.mask_on:
            return outputs
        boxes, _, classes = outputs
        pooled = _pool(heads.mask_pooler, [features[f] for f in heads.mask_in_features], boxes)
        several = isinstance(heads.mask_head, nn.ModuleList)
        stages = heads.mask_head if several else [heads.mask_head]
        masks = [stage.layers(pooled)[:-1].sigmoid() for stage in stages]
        index = classes[:, None, None, None].expand(-1, 1, *masks[0].shape[2:])
        masks = [m if m.shape[1] == 1 else m.gather(1, index) for m in masks]
        return *outputs, torch.stack(masks).mean(dim=0)[:, 0]

    def _propose(self, features: Dict[str, torch.Tensor], size: Tuple) -> torch.Tensor:
        """``RPN.predict_proposals``: (N, 4)."""
        rpn = self.model.proposal_generator
        maps = [features[f] for f in rpn.in_features]
        boxes, scores, levels, topk = [], [], [], rpn.pre_nms_topk[False]
        for level, (anchors, logits, deltas) in enumerate(
            zip(_anchors(rpn.anchor_generator, maps), *rpn.rpn_head(maps))
        ):
            logits = permute_to_N_HWA_K(logits, 1)[0, :, 0]
            # Made so long that there are never too few; what is added is taken out as not finite.
            longer = F.pad(logits, (0, topk), value=-torch.inf)
            scores_i, order = (x[:topk] for x in longer.sort(descending=True, stable=True))
            order = order.clamp(max=logits.shape[0] - 1)
            deltas = permute_to_N_HWA_K(deltas, 4)[0, order]
            boxes.append(rpn.box2box_transform.apply_deltas(deltas, anchors[order]))
            scores.append(scores_i)
            levels.append(torch.full_like(order, level))
        boxes, scores, levels = torch.cat(boxes), torch.cat(scores), torch.cat(levels)
        finite = boxes.isfinite().all(dim=1) & scores.isfinite()
        boxes = _clip(boxes, size)
        keep = finite & ((boxes[:, 2:] - boxes[:, :2]) > rpn.min_box_size).all(dim=1)
        boxes, scores, levels = boxes[keep], scores[keep], levels[keep]
        keep = batched_nms_in_double(boxes, scores, levels, rpn.nms_thresh)
        return boxes[keep[: rpn.post_nms_topk[False]]]

    def _run_box_heads(
        self, features: Dict[str, torch.Tensor], boxes: torch.Tensor, size: Tuple
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Boxes (N, 1 or K, 4) that are clipped, and scores (N, K)."""
        heads = self.model.roi_heads
        maps = [features[f] for f in heads.box_in_features]
        cascade = isinstance(heads, CascadeROIHeads)
        stages = (heads.box_head, heads.box_predictor)
        stages = list(zip(*stages)) if cascade else [stages]
        logits, decoded = [], boxes
        for box_head, predictor in stages:
            boxes = _clip(decoded.reshape(-1, 4), size)
            predicted = predictor(box_head(_pool(heads.box_pooler, maps, boxes)))
            scores, deltas = (p[:-1] for p in predicted)
            logits.append(scores)
            decoded = predictor.box2box_transform.apply_deltas(deltas, boxes)
        scores = _mean_scores(heads, predictor, logits)
        finite = decoded.isfinite().all(dim=1) & scores.isfinite().all(dim=1)
        scores = torch.where(finite[:, None], scores[:, :-1], -1.0)
        return _clip(decoded.unflatten(1, (-1, 4)), size), scores


class _RetinaNet(_Dataflow):
    def detect(self, features: Dict[str, torch.Tensor], size: Tuple) -> Tuple[torch.Tensor, ...]:
        model = self.model
        maps = [features[f] for f in model.head_in_features]
        levels = []
        for anchors, logits, deltas in zip(
            _anchors(model.anchor_generator, maps), *model.head(maps)
        ):
            scores = permute_to_N_HWA_K(logits, model.num_classes)[0].sigmoid()
            indices, classes = (scores > model.test_score_thresh).nonzero().unbind(1)
            scores, order = scores[indices, classes].sort(descending=True)
            scores, order = (x[: model.test_topk_candidates] for x in (scores, order))
            deltas = permute_to_N_HWA_K(deltas, 4)[0, indices[order]]
            boxes = model.box2box_transform.apply_deltas(deltas, anchors[indices[order]])
            levels.append((boxes, scores, classes[order]))
        boxes, scores, classes = map(torch.cat, zip(*levels))
        if isinstance(model, OpenMMLabRetinaNet):
            boxes, scores, classes = _without_empty(_clip(boxes, size), scores, classes)
        keep = batched_nms_in_double(boxes, scores, classes, model.test_nms_thresh)
        keep = keep[: model.max_detections_per_image]
        return _without_empty(_clip(boxes[keep], size), scores[keep], classes[keep])


def _anchors(generator: DefaultAnchorGenerator, maps: List[torch.Tensor]) -> List[torch.Tensor]:
    """``DefaultAnchorGenerator.forward``: of each level (H * W * A, 4)."""
    anchors = []
    for features, stride, cells in zip(maps, generator.strides, generator.cell_anchors):
        height, width = features.shape[-2:]
        cell = torch.arange(height * width)
        corner = torch.stack([cell % width, cell // width], dim=1)
        shifts = (corner + generator.offset) * stride
        anchors.append((shifts.repeat(1, 2)[:, None] + cells).flatten(0, 1))
    return anchors


def _clip(boxes: torch.Tensor, size: Tuple) -> torch.Tensor:
    height, width = size
    x0, y0, x1, y1 = boxes.unbind(-1)
    x0, x1 = x0.clamp(min=0, max=width), x1.clamp(min=0, max=width)
    y0, y1 = y0.clamp(min=0, max=height), y1.clamp(min=0, max=height)
    return torch.stack([x0, y0, x1, y1], dim=-1)


def _without_empty(
    boxes: torch.Tensor, scores: torch.Tensor, classes: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    keep = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    return boxes[keep], scores[keep], classes[keep]


def _pool(pooler: ROIPooler, maps: List[torch.Tensor], boxes: torch.Tensor) -> torch.Tensor:
    """``ROIPooler.forward``: (N + 1, C, H, W). The last is of a box of no interest.

    With it there is always a box, which layers that ask whether they have one need.
    """
    boxes = torch.cat([boxes, boxes.new_ones(1, 4)])
    rois = F.pad(boxes, (1, 0))  # all of image 0
    if len(pooler.level_poolers) == 1:
        return pooler.level_poolers[0](maps[0], rois)
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt()
    levels = pooler.canonical_level + torch.log2(sides / pooler.canonical_box_size + 1e-8)
    levels = levels.floor().clamp(pooler.min_level, pooler.max_level) - pooler.min_level
    pooled = maps[0].new_zeros(boxes.shape[0], maps[0].shape[1], *pooler.output_size)
    for level, pool in enumerate(pooler.level_poolers):
        rows = (levels == level).nonzero()[:, 0]
        pooled = pooled.index_put((rows,), pool(maps[level], rois[rows]))
    return pooled


def _mean_scores(
    heads: StandardROIHeads, predictor: nn.Module, logits: List[torch.Tensor]
) -> torch.Tensor:
    if isinstance(heads, OpenMMLabCascadeROIHeads):
        logits = [sum(logits) / len(logits)]
    if getattr(predictor, "use_sigmoid_ce", False):
        return sum(x.sigmoid() for x in logits) / len(logits)
    return sum(x.softmax(dim=-1) for x in logits) / len(logits)


def _best(
    boxes: torch.Tensor, class_scores: torch.Tensor, predictor: nn.Module
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``fast_rcnn_inference_single_image``."""
    if isinstance(predictor, nn.ModuleList):
        predictor = predictor[-1]
    rows, classes = (class_scores > predictor.test_score_thresh).nonzero().unbind(1)
    scores = class_scores[rows, classes]
    boxes = boxes[rows, 0] if boxes.shape[1] == 1 else boxes[rows, classes]
    keep = batched_nms_in_double(boxes, scores, classes, predictor.test_nms_thresh)
    if predictor.test_topk_per_image >= 0:
        keep = keep[: predictor.test_topk_per_image]
    return boxes[keep], scores[keep], classes[keep]
