"""A detector as a function from one image tensor to tensors, for tracing and for ``torch.export``.

:func:`make_traceable` runs Detectron2's own code, which ONNX's exporter traces; that also takes
heads of other projects. ``torch.export`` takes no branch on a value, and Detectron2 branches on
values (whether all boxes are finite, how many there are), so :func:`make_dataflow` computes the
same with the detector's own modules, without such branches.

Both must suppress boxes as torchvision's ``batched_nms`` does on the CPU. It shifts the groups
(classes, or levels of a pyramid) of up to 1,000 boxes apart in one plane, and suppresses all at
once; it takes the groups of more boxes one by one. Traced, it always shifts, which rounds: with 80
classes and 1,333 pixels to 1/128 pixel, so that boxes whose overlap is at the threshold are kept in
one of the two and suppressed in the other.
"""

from contextlib import contextmanager
from functools import partial
from typing import Dict, Iterator, List, Tuple
from unittest import mock

import torch
import torch.nn.functional as F
from detectron2.export.torchscript_patch import patch_builtin_len
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn
from torchvision.ops import nms

from ...errors import UserError
from ...modeling.heads import clip, decode_best, shift_groups
from ...modeling.published import OpenMMLabCascadeROIHeads, OpenMMLabRetinaNet

OUTPUTS = ("boxes", "scores", "classes", "masks")

_DATAFLOW_HEADS = (StandardROIHeads, CascadeROIHeads, OpenMMLabCascadeROIHeads)

# torchvision's batched_nms shifts the groups of up to this many boxes.
_NUM_SHIFTED = 1000


# ---- by tracing Detectron2's code ----


def make_traceable(model: nn.Module) -> nn.Module:
    """Wrap a detector for export.

    Args:
        model (nn.Module): Faster, Mask or Cascade R-CNN, or RetinaNet, on the CPU, in evaluation
            mode; its parameters must not require gradients.

    Returns:
        nn.Module: its ``forward`` takes a uint8 image of shape (H, W, 3), the channels as in
        ``INPUT.FORMAT``, and returns, best first, boxes (N, 4) as x0, y0, x1, y1 in pixels of
        that image, scores (N,), classes (N,) from 0 on, and, of a model with masks, their
        probabilities in the box (N, 28, 28).

    Raises:
        UserError: for another kind of model.
    """
    if type(model) is GeneralizedRCNN and not getattr(model.roi_heads, "keypoint_on", False):
        return _TraceableRCNN(model).eval()
    if isinstance(model, RetinaNet):
        return _TraceableRetinaNet(model).eval()
    kind = "a keypoint model" if type(model) is GeneralizedRCNN else type(model).__name__
    raise UserError(f"{kind} cannot be exported: Faster, Mask and Cascade R-CNN and RetinaNet can")


class _Traceable(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> Tuple[torch.Tensor, ...]:
        batch = [{"image": image.permute(2, 0, 1).float()}]
        with patch_builtin_len(), traceable_nms(), traceable_padding():
            instances = self.detect(batch)
        # As Detectron2's postprocessing, which is left out as it resizes to another size, too.
        instances.pred_boxes.clip(instances.image_size)
        instances = instances[instances.pred_boxes.nonempty()]
        outputs = [instances.pred_boxes.tensor, instances.scores, instances.pred_classes]
        if instances.has("pred_masks"):
            outputs.append(instances.pred_masks[:, 0])
        return tuple(outputs)

    def detect(self, batch: List[Dict[str, torch.Tensor]]) -> Instances:
        raise NotImplementedError


class _TraceableRCNN(_Traceable):
    def detect(self, batch: List[Dict[str, torch.Tensor]]) -> Instances:
        return self.model.inference(batch, do_postprocess=False)[0]


class _TraceableRetinaNet(_Traceable):
    def detect(self, batch: List[Dict[str, torch.Tensor]]) -> Instances:
        model = self.model
        images = model.preprocess_image(batch)
        features = model.backbone(images.tensor)
        features = [features[name] for name in model.head_in_features]
        with _decoding_for_any_number(model):
            return model.forward_inference(images, features, model.head(features))[0]


@contextmanager
def traceable_padding() -> Iterator[None]:
    """Let Detectron2's ``ImageList.from_tensors`` be traced without a division of integers.

    It rounds a side up by ``(side + 31) // 32 * 32``. OpenVINO multiplies by 1 / 32 and lets the
    two products cancel out, so that the padded size is not a multiple of 32.
    """
    stock = ImageList.from_tensors

    def from_tensors(
        tensors: List[torch.Tensor], size_divisibility: int = 0, pad_value: float = 0.0, **more
    ) -> ImageList:
        # Detectron2's main also has padding_constraints, which are empty but for a ViT's.
        if size_divisibility < 2 or len(tensors) != 1 or any(more.values()):
            return stock(tensors, size_divisibility, pad_value, **more)
        size = torch.stack([torch.as_tensor(side) for side in tensors[0].shape[-2:]])
        last = size_divisibility - 1
        missing = last - (size + last) % size_divisibility
        padded = F.pad(tensors[0], [0, missing[1], 0, missing[0]], value=pad_value)
        return ImageList(padded[None], [size])

    with mock.patch.object(ImageList, "from_tensors", staticmethod(from_tensors)):
        yield


@contextmanager
def _decoding_for_any_number(model: RetinaNet) -> Iterator[None]:
    """Detectron2 0.6 compares numbers of candidates, which tracing would record as a constant."""
    model._decode_per_level_predictions = partial(_decode_level, model)
    try:
        yield
    finally:
        del model._decode_per_level_predictions


def _decode_level(
    model: RetinaNet,
    anchors: Boxes,
    pred_scores: torch.Tensor,
    pred_deltas: torch.Tensor,
    score_thresh: float,
    topk_candidates: int,
    image_size: Tuple[int, int],
) -> Instances:
    """``DenseDetector._decode_per_level_predictions``, with a slice where that counts."""
    candidates = (pred_scores > score_thresh).nonzero()
    anchor_indices, classes = candidates.unbind(dim=1)
    scores, order = pred_scores[anchor_indices, classes].sort(descending=True)
    scores, order = scores[:topk_candidates], order[:topk_candidates]
    anchor_indices, classes = anchor_indices[order], classes[order]
    boxes = model.box2box_transform.apply_deltas(
        pred_deltas[anchor_indices], anchors.tensor[anchor_indices]
    )
    return Instances(image_size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)


# ---- without branches, for torch.export ----


def make_dataflow(model: nn.Module) -> nn.Module:
    """Wrap a detector for ``torch.export``.

    Args:
        model (nn.Module): as for :func:`rsb_d2.addons.export.make_traceable`.

    Returns:
        nn.Module: its ``forward`` has the inputs and outputs of ``make_traceable``.

    Raises:
        UserError: for heads or anchors other than Detectron2's own and OpenMMLab's.
    """
    rpn = getattr(model, "proposal_generator", None)
    anchors = type(getattr(rpn or model, "anchor_generator", None))
    heads = type(getattr(model, "roi_heads", model))
    if anchors is DefaultAnchorGenerator:
        if isinstance(model, RetinaNet):
            return _RetinaNet(model).eval()
        if isinstance(model, GeneralizedRCNN) and heads in _DATAFLOW_HEADS:
            return _RCNN(model).eval()
    raise UserError(
        f"{heads.__name__} with {anchors.__name__} cannot be exported with torch.export: name a "
        "file in .onnx"
    )


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
        outputs = _without_empty(*_detections(boxes, scores, heads.box_predictor))
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
        logits, deltas = rpn.rpn_head(maps)
        boxes, scores, levels = decode_best(
            rpn.box2box_transform,
            _anchors(rpn.anchor_generator, maps),
            [permute_to_N_HWA_K(x, 1)[:, :, 0] for x in logits],
            [permute_to_N_HWA_K(x, 4) for x in deltas],
            rpn.pre_nms_topk[False],
            _best_padded,
        )
        boxes, scores = boxes[0], scores[0]
        finite = boxes.isfinite().all(dim=1) & scores.isfinite()
        boxes = clip(boxes, size)
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
            boxes = clip(decoded.reshape(-1, 4), size)
            predicted = predictor(box_head(_pool(heads.box_pooler, maps, boxes)))
            scores, deltas = (p[:-1] for p in predicted)
            logits.append(scores)
            decoded = predictor.box2box_transform.apply_deltas(deltas, boxes)
        scores = _mean_scores(heads, predictor, logits)
        finite = decoded.isfinite().all(dim=1) & scores.isfinite().all(dim=1)
        scores = torch.where(finite[:, None], scores[:, :-1], -1.0)
        return clip(decoded.unflatten(1, (-1, 4)), size), scores


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
            boxes, scores, classes = _without_empty(clip(boxes, size), scores, classes)
        keep = batched_nms_in_double(boxes, scores, classes, model.test_nms_thresh)
        keep = keep[: model.max_detections_per_image]
        return _without_empty(clip(boxes[keep], size), scores[keep], classes[keep])


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


def _best_padded(values: torch.Tensor, num: int) -> Tuple[torch.Tensor, torch.Tensor]:
    """The best ``num`` values of each row and their indices, always ``num`` of them.

    The rows are padded, so that there are never too few; the padding is not finite.
    """
    last = values.shape[1] - 1
    values, index = F.pad(values, (0, num), value=-torch.inf).sort(descending=True, stable=True)
    return values[:, :num], index[:, :num].clamp(max=last)


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
    levels = assign_boxes_to_levels(
        [Boxes(boxes)],
        pooler.min_level,
        pooler.max_level,
        pooler.canonical_box_size,
        pooler.canonical_level,
    )
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


def _detections(
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


# ---- NMS ----


@contextmanager
def traceable_nms() -> Iterator[None]:
    """Let tracing record the computation of Detectron2's ``batched_nms`` without tracing."""
    # Detectron2 compares the number of boxes with 40,000, which tracing would record as a constant.
    with (
        mock.patch("torchvision.ops.boxes.batched_nms", batched_nms),
        mock.patch("detectron2.layers.nms.len", lambda boxes: 0),
    ):
        yield


def batched_nms(
    boxes: torch.Tensor, scores: torch.Tensor, groups: torch.Tensor, threshold: float
) -> torch.Tensor:
    """For tracing: of many boxes one group after the other, as ONNX has no NMS in double.

    Args:
        boxes (Tensor): (N, 4), x0, y0, x1, y1; not all negative.
        scores (Tensor): (N,).
        groups (Tensor): (N,), integers from 0 on; boxes of different ones do not suppress.
        threshold (float): of the intersection over union, in 0 ... 1.

    Returns:
        Tensor: (M,), indices of the boxes to keep, best first.
    """
    is_shifted = _is_shifted(groups)
    boxes = torch.where(is_shifted, shift_groups(boxes, groups), boxes)
    groups = torch.where(is_shifted, torch.zeros_like(groups), groups)
    return _one_by_one(boxes, scores, groups, threshold)


def batched_nms_in_double(
    boxes: torch.Tensor, scores: torch.Tensor, groups: torch.Tensor, threshold: float
) -> torch.Tensor:
    """For ``torch.export``, which takes no loop: as :func:`batched_nms`, all at once."""
    lowest = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).min().double()
    # The rounding of a sum in float32 where there is one; else none that counts.
    apart = torch.where(
        _is_shifted(groups),
        shift_groups(boxes, groups).double(),
        shift_groups(boxes.double() - lowest, groups),
    )
    return nms(apart, scores.double(), threshold)


def _is_shifted(groups: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(groups).sum() <= _NUM_SHIFTED


# A script, as its loop would be unrolled, for the groups of one image, by tracing.
@torch.jit.script_if_tracing
def _one_by_one(
    boxes: torch.Tensor, scores: torch.Tensor, groups: torch.Tensor, threshold: float
) -> torch.Tensor:
    last = int(torch.cat([groups, groups.new_zeros([1])]).max())
    kept = torch.zeros_like(groups)
    for group in range(last + 1):
        indices = (groups == group).nonzero()[:, 0]
        best = torch.ops.torchvision.nms(boxes[indices], scores[indices], threshold)
        # Without the reshape the exporter to ONNX does not know that it has one dimension.
        kept = kept.index_fill(0, indices.index_select(0, best.reshape(-1)), 1)
    keep = kept.nonzero()[:, 0]
    return keep[scores[keep].sort(descending=True)[1]]
