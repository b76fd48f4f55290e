"""A detector as one graph from padded images to detections, in which every shape is fixed.

Nothing in it depends on a value: no list is shortened, no branch is taken, nothing is read from the
device. Candidates that Detectron2 leaves out are carried along as invalid. That graph can be
recorded as one CUDA graph, exported by ``torch.export`` without unbacked symbols, and written as
ONNX.
"""

import math
from typing import Dict, List, NamedTuple, Sequence, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.layers import ROIAlign
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.modeling.roi_heads import CascadeROIHeads, Res5ROIHeads, StandardROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.structures import Boxes
from torch import nn

from ...errors import UserError
from ...modeling import OpenMMLabCascadeROIHeads, TimmRes5ROIHeads
from ...modeling.heads import FastRPN, decode_best
from ...modeling.published import (
    MIN_SIDE,
    OpenMMLabRetinaNet,
    RetinaNetClippedBeforeNMS,
    TorchvisionOutputLayers,
    TorchvisionRetinaNet,
    TorchvisionROIHeads,
)
from ...utils import unwrap
from .roi_align import ChannelsLastROIPooler, pooled_in_float32

# Of an image, so many boxes with the best scores enter the last NMS. torchvision's batched_nms
# computes differently with up to 1,000 boxes on the CPU, so it must not be fewer.
_NUM_CANDIDATES = 1000
# On the CPU and on a GPU, torchvision's batched_nms shifts the groups of up to so many boxes apart.
_NUM_SHIFTED, _NUM_SHIFTED_GPU = 1000, 25_000
# Of the fixed point that is NMS; 6 to 10 are needed for clusters of 1,000 to 4,000 boxes.
_ROUNDS = 16
# Or minus infinity: the maximum of nothing, which differs between runtimes.
_LOWEST = torch.finfo(torch.float32).min
# So many pixels to the left of an image and above it, zeros are pooled, of strides up to 128.
# Runtimes may round boxes to bfloat16, in which this one has a size: RoIAlign of an empty box
# divides by zero.
_FAR, _FAR_SIDE = 256.0, 4.0

_ROI_HEADS = (
    *(StandardROIHeads, CascadeROIHeads, OpenMMLabCascadeROIHeads, TorchvisionROIHeads),
    *(Res5ROIHeads, TimmRes5ROIHeads),
)
_RETINANETS = (RetinaNet, RetinaNetClippedBeforeNMS, OpenMMLabRetinaNet, TorchvisionRetinaNet)
_PREDICTORS = (FastRCNNOutputLayers, TorchvisionOutputLayers)


class Chosen(NamedTuple):
    """Of each image a fixed number of boxes."""

    boxes: torch.Tensor  # (B, N, 4), x0, y0, x1, y1 in pixels
    scores: torch.Tensor  # (B, N); minus infinity for a box that does not count
    classes: torch.Tensor  # (B, N), integers; of proposals, their level

    @property
    def is_valid(self) -> torch.Tensor:
        """Tensor: (B, N), bool: whether a box counts."""
        return self.scores > -torch.inf

    def best(self, num: int) -> "Chosen":
        """The ``num`` best boxes of each image, best first; if there are fewer, others follow."""
        scores, index = best(self.scores, num)
        return Chosen(_take(self.boxes, index), scores, self.classes.gather(1, index))

    def only(self, keep: torch.Tensor) -> "Chosen":
        """The same boxes, of which only those count for which ``keep`` (B, N) is true."""
        return self._replace(scores=self.scores.where(keep, -torch.inf))


def static_detector(
    model: nn.Module, image_size: Tuple[int, int] | None, batch_size: int = 1
) -> "StaticDetector":
    """Make a module of fixed shapes that detects what a detector does.

    Its detections are those that the detector finds in the same batch: classes and order are the
    same, scores differ by at most 1e-5 and boxes by at most 1e-2 pixels in float32. Detectron2
    pads a batch to its largest image, and this module to ``image_size``; features near the border
    of an image depend on the padding.

    Args:
        model (nn.Module): Faster, Mask or Cascade R-CNN or RetinaNet, on any device, also one of
            :func:`rsb_d2.optimize_for_inference`. The result shares its weights and puts it into
            evaluation mode.
        image_size (tuple[int, int] or None): height and width in pixels of the padded images; None
            to export a graph for any size, on which some shapes inside depend then.
        batch_size (int): number of images.

    Returns:
        StaticDetector

    Raises:
        UserError: if the model or a part of it has no form with fixed shapes, or if a size is not
            a positive integer.
    """
    model = unwrap(model)
    for name, sizes in (("image_size", image_size or ()), ("batch_size", (batch_size,))):
        if not all(isinstance(size, int) and size > 0 for size in sizes):
            raise UserError(f"{name} is {sizes}; write positive integers")
    _check(model, type(model) in (GeneralizedRCNN, *_RETINANETS))
    detector = StaticRetinaNet
    if type(model) is GeneralizedRCNN:
        _check_rcnn(model)
        detector = StaticRCNN
    detector = detector(model, image_size, batch_size).eval()
    if detector.limit < 0:
        raise UserError(
            f"TEST.DETECTIONS_PER_IMAGE is {detector.limit}; fixed shapes need a limit, as 100"
        )
    return detector


def _check(part: nn.Module, is_known: bool) -> None:
    if not is_known:
        raise UserError(
            f"{type(part).__name__} has no form with fixed shapes: Faster, Mask and Cascade R-CNN "
            "and RetinaNet with Detectron2's, OpenMMLab's or torchvision's parts have one"
        )


def _check_rcnn(model: GeneralizedRCNN) -> None:
    rpn, heads = model.proposal_generator, model.roi_heads
    _check(rpn, FastRPN.takes(rpn))
    _check(heads, type(heads) in _ROI_HEADS)
    if getattr(heads, "keypoint_on", False):
        _check(heads.keypoint_head, False)
    for predictor in as_list(heads.box_predictor):
        _check(predictor, type(predictor) in _PREDICTORS)
    for mask_head in as_list(heads.mask_head) if heads.mask_on else []:
        _check(mask_head, type(mask_head) is MaskRCNNConvUpsampleHead)
    for name in ("pooler", "box_pooler", "mask_pooler"):
        pooler = getattr(heads, name, None)
        if pooler is not None:
            hooks = {*pooler._forward_hooks.values(), *pooler._forward_pre_hooks.values()}
            is_known = type(pooler) in (ROIPooler, ChannelsLastROIPooler)
            is_known = is_known and all(type(p) is ROIAlign for p in pooler.level_poolers)
            _check(pooler, is_known and hooks <= {pooled_in_float32})


def as_list(module: nn.Module) -> List[nn.Module]:
    """The heads of the stages of a cascade, or the only one."""
    return list(module) if isinstance(module, nn.ModuleList) else [module]


class StaticDetector(nn.Module):
    """A detector of fixed shapes, see :func:`static_detector`."""

    def __init__(self, model: nn.Module, image_size: Tuple[int, int] | None, batch_size: int):
        super().__init__()
        self.model = model.eval()
        self.image_size = image_size and tuple(image_size)
        self.batch_size = batch_size
        if hasattr(model, "roi_heads"):
            self.limit = as_list(model.roi_heads.box_predictor)[-1].test_topk_per_image
        else:
            self.limit = model.max_detections_per_image

    def stack(self, images: Sequence[torch.Tensor]) -> Tuple[torch.Tensor, torch.Tensor]:
        """Pad images of several sizes.

        Args:
            images (Sequence[Tensor]): B images (3, h, w).

        Returns:
            Tensor, Tensor: the arguments of :meth:`forward`, on the device of the images.

        Raises:
            UserError: if there are not B images, or one is larger than H x W.
        """
        if len(images) != self.batch_size:
            raise UserError(f"the graph takes {self.batch_size} images, and not {len(images)}")
        batch = images[0].new_zeros(self.batch_size, 3, *self.image_size)
        for place, image in zip(batch, images):
            height, width = image.shape[1:]
            if height > batch.shape[2] or width > batch.shape[3]:
                raise UserError(
                    f"an image of {height} x {width} is larger than the graph, which takes "
                    f"{batch.shape[2]} x {batch.shape[3]}"
                )
            place[:, :height, :width] = image
        sizes = torch.tensor([image.shape[1:] for image in images])
        if batch.is_cuda:
            sizes = sizes.pin_memory()
        return batch, sizes.to(batch.device, non_blocking=True)

    def anchors(self, maps: List[torch.Tensor]) -> List[torch.Tensor]:
        """The anchors of each level (A, 4), whose features are (B, C, H, W)."""
        generator = getattr(self.model, "proposal_generator", self.model).anchor_generator
        if type(generator) is not DefaultAnchorGenerator:
            return [anchors.tensor for anchors in generator(maps)]
        anchors = []  # as the generator, which in some versions copies from the CPU
        for x, stride, cells in zip(maps, generator.strides, generator.cell_anchors):
            size = x.shape[2:]
            rows, columns = (torch.arange(side, device=x.device) for side in size)
            corners = torch.stack([columns.expand(size), rows[:, None].expand(size)], dim=2)
            shifts = ((corners + generator.offset) * stride).repeat(1, 1, 2)
            anchors.append((shifts[:, :, None] + cells).reshape(-1, 4))
        return anchors

    def forward(self, images: torch.Tensor, sizes: torch.Tensor) -> Dict[str, torch.Tensor]:
        """Detect.

        Args:
            images (Tensor): (B, 3, H, W), uint8 or float, channels as in ``INPUT.FORMAT``, each
                image in the upper left corner; the rest of it may contain anything.
            sizes (Tensor): (B, 2), int64, height and width of each image without padding, on the
                device of the images; they must not exceed H and W.

        Returns:
            dict[str, Tensor]: ``boxes`` (B, K, 4) as x0, y0, x1, y1 in pixels, ``scores`` (B, K),
            ``classes`` (B, K), best first, where K is ``TEST.DETECTIONS_PER_IMAGE``;
            ``num_detections`` (B,), of which the others are 0; ``is_exact`` (B,), false for an
            image of which the detections may not be the detector's, so that it must be run; of
            Mask R-CNN also ``masks`` (B, K, 28, 28), probabilities in the box.

        Raises:
            UserError: for images of another shape.
        """
        expected = (self.batch_size, 3, *(self.image_size or images.shape[2:]))
        if tuple(images.shape) != expected:
            raise UserError(
                f"the graph takes images of shape {expected}, and not {tuple(images.shape)}: make "
                "another with static_detector"
            )
        features = self.model.backbone(self._normalise(images, sizes))
        limits = sizes.flip(1).repeat(1, 2)[:, None].to(torch.float32)  # width, height, twice
        found, is_exact = self.detect(features, limits)
        # As Detectron2's postprocessing; the empty ones go to the end.
        boxes = found.boxes
        found = found.only((boxes[..., 2:] > boxes[..., :2]).all(dim=2)).best(boxes.shape[1])
        is_valid = found.is_valid
        boxes = found.boxes.where(is_valid[:, :, None], 0.0)
        classes = found.classes.where(is_valid, 0)
        outputs = {
            "boxes": boxes,
            "scores": found.scores.where(is_valid, 0.0),
            "classes": classes,
            "num_detections": is_valid.sum(dim=1),
            "is_exact": is_exact,
        }
        if getattr(getattr(self.model, "roi_heads", None), "mask_on", False):
            masks = self.masks(features, boxes, classes)
            outputs["masks"] = masks.where(is_valid[:, :, None, None], 0.0)
        return outputs

    def _normalise(self, images: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        model, (height, width) = self.model, images.shape[-2:]
        normalised = (images - model.pixel_mean) / model.pixel_std
        rows = torch.arange(height, device=images.device) < sizes[:, :1]
        columns = torch.arange(width, device=images.device) < sizes[:, 1:]
        is_image = rows[:, None, :, None] & columns[:, None, None, :]
        divisor = max(model.backbone.size_divisibility, 1)
        # No quotient of integers, which OpenVINO replaces by a product.
        padding = (0, -width % divisor, 0, -height % divisor)
        return F.pad(normalised.where(is_image, 0.0), padding)

    def detect(
        self, features: Dict[str, torch.Tensor], limits: torch.Tensor
    ) -> Tuple[Chosen, torch.Tensor]:
        """The K best detections of each image, and whether they are exact (B,).

        ``limits`` (B, 1, 4) are width, height, width and height of the images.
        """
        raise NotImplementedError


class StaticRCNN(StaticDetector):
    """Faster, Mask and Cascade R-CNN."""

    def detect(
        self, features: Dict[str, torch.Tensor], limits: torch.Tensor
    ) -> Tuple[Chosen, torch.Tensor]:
        proposals, is_exact = self._propose(features, limits)
        candidates, total = self._run_box_heads(features, proposals, limits)
        heads = self.model.roi_heads
        threshold = as_list(heads.box_predictor)[-1].test_nms_thresh
        found, is_nms_exact = suppress_classes(
            candidates, heads.num_classes, total, threshold, self.limit
        )
        return found, is_exact & is_nms_exact

    def _propose(
        self, features: Dict[str, torch.Tensor], limits: torch.Tensor
    ) -> Tuple[Chosen, torch.Tensor]:
        """``RPN.predict_proposals``; levels are suppressed separately, of up to 1,000 boxes."""
        rpn = self.model.proposal_generator
        maps = [features[f] for f in rpn.in_features]
        num = rpn.pre_nms_topk[False]
        logits, deltas = rpn.rpn_head(maps)
        boxes, scores, levels = decode_best(
            rpn.box2box_transform,
            self.anchors(maps),
            [permute_to_N_HWA_K(x, 1)[:, :, 0] for x in logits],
            [permute_to_N_HWA_K(x, 4) for x in deltas],
            num,
            best,
        )
        found = Chosen(boxes, scores, levels.expand_as(scores))
        boxes = _clip(found.boxes, limits)
        is_valid = found.boxes.isfinite().all(dim=2) & found.scores.isfinite()
        is_valid = is_valid & (((boxes[..., 2:] - boxes[..., :2]) > rpn.min_box_size).all(dim=2))
        boxes = boxes.where(is_valid[:, :, None], _unit_box(boxes))
        shifted, _ = _shift(boxes, found.classes, is_valid, is_valid.sum(dim=1))
        shape = (-1, num)
        keep, is_settled = suppress(
            shifted.reshape(*shape, 4), is_valid.reshape(shape), rpn.nms_thresh
        )
        found = Chosen(boxes, found.scores, found.classes).only(is_valid)
        keep, is_settled = keep.view(is_valid.shape), is_settled.view(is_valid.shape)
        return _best_kept(found, keep, is_settled, rpn.post_nms_topk[False])

    def _run_box_heads(
        self, features: Dict[str, torch.Tensor], proposals: Chosen, limits: torch.Tensor
    ) -> Tuple[Chosen, torch.Tensor]:
        """Candidates of each image, best first, and how many have a score above the threshold."""
        heads = self.model.roi_heads
        decoded, shape, logits = proposals.boxes, proposals.scores.shape, []
        box_heads = [None] if isinstance(heads, Res5ROIHeads) else as_list(heads.box_head)
        for box_head, predictor in zip(box_heads, as_list(heads.box_predictor)):
            boxes, transform = _clip(decoded, limits), predictor.box2box_transform
            if box_head is None:
                regions = pool(heads.pooler, features, heads.in_features, boxes)
                x = heads.res5(regions).mean(dim=[2, 3])
            else:
                x = box_head(pool(heads.box_pooler, features, heads.box_in_features, boxes))
            of_classes, deltas = (y.float().view(*shape, -1) for y in predictor(x))
            logits.append(of_classes)
            if deltas.shape[2] == 4:  # as those of a cascade, for its next stage
                decoded = _decode(transform, deltas, boxes)
        if isinstance(heads, OpenMMLabCascadeROIHeads):
            logits = [sum(logits) / len(logits)]
        is_sigmoid = getattr(predictor, "use_sigmoid_ce", False)  # of Detectron2's main
        scores = [x.sigmoid() if is_sigmoid else F.softmax(x, dim=-1) for x in logits]
        scores = sum(scores) * (1.0 / len(scores))
        is_finite = deltas.isfinite().all(dim=2) & scores.isfinite().all(dim=2)
        is_valid = proposals.is_valid & is_finite
        # (B, R, K) -> (B, R * K)
        scores, num_classes = scores[:, :, :-1], scores.shape[2] - 1
        is_above = is_valid[:, :, None] & (scores > predictor.test_score_thresh)
        scores = scores.where(is_above, -torch.inf).flatten(1)
        scores, index = best(scores, min(_NUM_CANDIDATES, int(scores.shape[1])))
        rows, classes = index // num_classes, index % num_classes
        chosen = index if deltas.shape[2] > 4 else rows
        deltas = _take(deltas.reshape(len(deltas), -1, 4), chosen)
        boxes = _decode(transform, deltas, _take(boxes, rows))
        found = Chosen(_clip(boxes, limits), scores, classes)
        if isinstance(predictor, TorchvisionOutputLayers):
            sides = found.boxes[..., 2:] - found.boxes[..., :2]
            found = found.only((sides >= MIN_SIDE).all(dim=2))
        return found, is_above.flatten(1).sum(dim=1)

    def masks(
        self, features: Dict[str, torch.Tensor], boxes: torch.Tensor, classes: torch.Tensor
    ) -> torch.Tensor:
        """Masks (B, K, 28, 28) of boxes (B, K, 4) and classes (B, K)."""
        heads = self.model.roi_heads
        if isinstance(heads, Res5ROIHeads):
            x = heads.res5(pool(heads.pooler, features, heads.in_features, boxes))
        else:
            x = pool(heads.mask_pooler, features, heads.mask_in_features, boxes)
        index = classes.reshape(-1, 1, 1, 1)
        masks = []
        for mask_head in as_list(heads.mask_head):
            logits = mask_head.layers(x)
            if logits.shape[1] > 1:
                logits = logits.gather(1, index.expand(-1, 1, *logits.shape[2:]))
            masks.append(logits.float().sigmoid())
        masks = torch.stack(masks).mean(dim=0) if len(masks) > 1 else masks[0]
        return masks.view(*classes.shape, *masks.shape[2:])


class StaticRetinaNet(StaticDetector):
    """RetinaNet."""

    def detect(
        self, features: Dict[str, torch.Tensor], limits: torch.Tensor
    ) -> Tuple[Chosen, torch.Tensor]:
        model = self.model
        maps = [features[f] for f in model.head_in_features]
        levels, has_nan = [], []
        for anchors, logits, deltas in zip(self.anchors(maps), *model.head(maps)):
            logits = permute_to_N_HWA_K(logits, model.num_classes)
            # The best K scores are of at most K anchors; they are in order, for equal scores.
            of_anchors = logits.amax(dim=2).float().sigmoid()
            has_nan.append(of_anchors.isnan().any(dim=1))
            of_anchors, index = best(of_anchors, model.test_topk_candidates)
            index, order = index.sort(dim=1)
            is_valid = of_anchors.gather(1, order)[:, :, None] > -torch.inf
            scores = _take(logits, index).float().sigmoid()
            scores = scores.where(is_valid & (scores > model.test_score_thresh), -torch.inf)
            scores, places = best(scores.flatten(1), model.test_topk_candidates)
            index = index.gather(1, places // model.num_classes)
            deltas = _take(permute_to_N_HWA_K(deltas, 4), index)
            boxes = _decode(model.box2box_transform, deltas, anchors[index])
            levels.append(Chosen(boxes, scores, places % model.num_classes))
        found = Chosen(*(torch.cat(parts, dim=1) for parts in zip(*levels)))
        total = found.is_valid.sum(dim=1)
        found = found.best(_NUM_CANDIDATES)
        if isinstance(model, RetinaNetClippedBeforeNMS):
            found = found._replace(boxes=_clip(found.boxes, limits))
            if model.drops_empty_boxes:
                found = found.only((found.boxes[..., 2:] > found.boxes[..., :2]).all(dim=2))
        found, is_exact = suppress_classes(
            found, model.num_classes, total, model.test_nms_thresh, self.limit
        )
        found = found._replace(boxes=_clip(found.boxes, limits))
        return found, is_exact & ~torch.stack(has_nan).any(dim=0)


# ---- boxes ----


def best(values: torch.Tensor, num: int) -> Tuple[torch.Tensor, torch.Tensor]:
    """The best values of each row, of fixed number.

    Args:
        values (Tensor): (B, N).
        num (int): how many of each row; rows that are shorter are padded with minus infinity.

    Returns:
        Tensor, Tensor: values and indices, (B, num), best first; of equal values those with the
        lowest index, on a GPU any of them, as in Detectron2's own sort. An index of the padding is
        that of the last value.
    """
    last = values.shape[1] - 1
    if type(last) is not int or num > last + 1:  # in an export for any image size it is a symbol
        values = F.pad(values, (0, num), value=-torch.inf)
    if values.device.type != "cpu" or torch.onnx.is_in_onnx_export():  # of ONNX it is stable
        values, index = values.topk(num, dim=1)
    else:
        values, index = values.sort(dim=1, descending=True, stable=True)
    return values[:, :num], index[:, :num].clamp(max=last)


def _take(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """(B, N, C) at (B, M): (B, M, C)."""
    return values.gather(1, index[:, :, None].expand(-1, -1, values.shape[2]))


def _decode(transform, deltas: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """``apply_deltas`` of (B, N, 4) to (B, N, 4)."""
    return transform.apply_deltas(deltas.reshape(-1, 4), boxes.reshape(-1, 4)).view(boxes.shape)


def _unit_box(boxes: torch.Tensor) -> torch.Tensor:
    """The box (0, 0, 1, 1), for rows that do not count, made on the device."""
    return (torch.arange(4, device=boxes.device) > 1).to(boxes.dtype)


def _clip(boxes: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    return torch.minimum(boxes.clamp(min=0), limits)


def pool(
    pooler: ROIPooler, features: Dict[str, torch.Tensor], names: Sequence[str], boxes: torch.Tensor
) -> torch.Tensor:
    """``ROIPooler.forward`` of boxes (B, R, 4): (B * R, C, h, w).

    Every box is pooled from every level; on all levels but its own it is moved outside of the
    features, which takes next to no time and gives zeros.
    """
    batch, number = map(int, boxes.shape[:2])
    images = torch.arange(batch, device=boxes.device, dtype=boxes.dtype)
    images = images[:, None].expand(batch, number).reshape(-1)
    boxes = boxes.reshape(-1, 4)
    levels = torch.zeros_like(images, dtype=torch.long)
    if len(pooler.level_poolers) > 1:
        levels = assign_boxes_to_levels(
            *([Boxes(boxes)], pooler.min_level, pooler.max_level),
            *(pooler.canonical_box_size, pooler.canonical_level),
        )
    nowhere = _unit_box(boxes) * _FAR_SIDE - _FAR
    pooled = None
    for level, (name, align) in enumerate(zip(names, pooler.level_poolers)):
        rois = torch.cat([images[:, None], boxes.where((levels == level)[:, None], nowhere)], dim=1)
        of_level = align(features[name].float().contiguous(), rois)
        pooled = of_level if pooled is None else pooled + of_level
    return pooled


# ---- NMS ----


def suppress_classes(
    found: Chosen, num_classes: int, total: torch.Tensor, threshold: float, limit: int
) -> Tuple[Chosen, torch.Tensor]:
    """NMS in each class.

    Args:
        found (Chosen): candidates, best first.
        num_classes (int): how many classes there are.
        total (Tensor): (B,), how many candidates there are, of which ``found`` has the best.
        threshold (float): maximum IoU.
        limit (int): how many to keep.

    Returns:
        Chosen, Tensor: (B, limit), and whether they are exact (B,).
    """
    is_valid, left_out = found.is_valid, total - int(found.scores.shape[1])
    count = is_valid.sum(dim=1) + left_out.clamp(min=0)
    shifted, is_shifted = _shift(found.boxes, found.classes, is_valid, count)
    # Shifted boxes of all classes are in one group; they may overlap, if some are negative.
    groups = found.classes.where(~is_shifted[:, None], 0)
    suppressed = suppress(shifted, is_valid, threshold, groups, num_classes)
    kept, is_exact = _best_kept(found, *suppressed, limit)
    # Of a list that is cut short, those that are kept are the same up to where it is cut.
    return kept, is_exact & ((left_out <= 0) | kept.is_valid[:, -1])


def _best_kept(
    found: Chosen, keep: torch.Tensor, is_settled: torch.Tensor, num: int
) -> Tuple[Chosen, torch.Tensor]:
    """The best boxes that are kept (B, num), and whether all better ones are settled (B,)."""
    kept = found.only(keep).best(num)
    unsettled = found.only(~is_settled).scores.amax(dim=1)
    return kept, (unsettled <= _LOWEST) | (unsettled < kept.scores[:, -1])


def _shift(
    boxes: torch.Tensor, groups: torch.Tensor, is_valid: torch.Tensor, count: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Boxes (B, N, 4) as torchvision's ``batched_nms`` rounds them, and whether it does (B,).

    It shifts the groups of few boxes apart in one plane, in float32, and suppresses all at once.
    With 80 classes and 1,333 pixels that rounds to 1/128 pixel. ``count`` (B,) is the number of
    boxes that Detectron2 passes to it.
    """
    is_few = count <= (_NUM_SHIFTED if boxes.device.type == "cpu" else _NUM_SHIFTED_GPU)
    extent = boxes.where(is_valid[:, :, None], -torch.inf).flatten(1).amax(dim=1) + 1
    is_few = is_few & (extent > _LOWEST)
    offsets = groups.to(boxes.dtype) * extent.where(is_few, 0.0)[:, None]
    return boxes + offsets[:, :, None], is_few


def suppress(
    boxes: torch.Tensor,
    is_valid: torch.Tensor,
    threshold: float,
    groups: torch.Tensor | None = None,
    num_groups: int = 1,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Greedy NMS of fixed shape, as ``torchvision.ops.nms``.

    A box is kept if no better box that is kept overlaps it. That is a fixed point of
    ``keep[j] = not any(keep[i] and iou[i, j] > threshold for i before j)``. If all are kept at
    first, then the boxes of one round are more than those to be kept, and of the next one fewer,
    in turn: where two rounds agree, a box is settled.

    Args:
        boxes (Tensor): (G, N, 4), of each group N boxes, best first.
        is_valid (Tensor): (G, N); others suppress nothing, and are not kept.
        threshold (float): maximum IoU.
        groups (Tensor or None): (G, N), integers from 0 on; boxes of different ones do not
            suppress each other.
        num_groups (int): how many of them there are.

    Returns:
        Tensor, Tensor: (G, N), whether each box is kept, and whether that is settled, after a
        fixed number of rounds.
    """
    # torchvision compares in float64: a float32 is above that threshold if it is above this one.
    rounded = np.float32(threshold)
    if float(rounded) > threshold:
        rounded = np.nextafter(rounded, np.float32(-math.inf))
    if torch.onnx.is_in_onnx_export():
        sizes = tuple(map(int, is_valid.shape))
        scores = torch.arange(sizes[1], 0, -1, dtype=torch.float32).where(is_valid, 0.0)[:, None]
        if groups is not None:
            is_in = groups[:, None] == torch.arange(num_groups)[:, None]
            scores = scores.where(is_in, 0.0)
        return _OnnxNMS.apply(boxes, scores, float(rounded), *sizes) > 0, torch.ones_like(is_valid)
    x0, y0, x1, y1 = boxes.unbind(dim=2)
    areas = (x1 - x0) * (y1 - y0)
    width = torch.minimum(x1[:, :, None], x1[:, None]) - torch.maximum(x0[:, :, None], x0[:, None])
    height = torch.minimum(y1[:, :, None], y1[:, None]) - torch.maximum(y0[:, :, None], y0[:, None])
    common = width.clamp(min=0) * height.clamp(min=0)
    overlap = common / (areas[:, :, None] + areas[:, None] - common) > float(rounded)
    order = torch.arange(boxes.shape[1], device=boxes.device)
    overlap = overlap & (order[:, None] < order)
    if groups is not None:
        overlap = overlap & (groups[:, :, None] == groups[:, None])
    dtype = torch.float32 if boxes.device.type == "cpu" else torch.float16
    overlap, keep = overlap.to(dtype), is_valid[:, None]
    for _ in range(_ROUNDS):
        before = keep
        keep = is_valid[:, None] & (keep.to(dtype) @ overlap == 0)
    return keep[:, 0], (keep == before)[:, 0]


class _OnnxNMS(torch.autograd.Function):
    """NMS in ONNX, whose runtimes have an operator for it: one for all groups."""

    @staticmethod
    def forward(ctx, boxes, scores, threshold, num_groups, number):
        """Values that do not matter while a graph is traced, of the right shape."""
        return scores.amax(dim=1)

    @staticmethod
    def symbolic(g, boxes, scores, threshold: float, num_groups: int, number: int):
        """Whether boxes (G, N, 4) are kept, with scores (G, C, N), 0 where not in a class."""

        def constant(value):
            return g.op("Constant", value_t=torch.as_tensor(value))

        limits = constant([number]), constant([threshold]), constant([0.5])
        kept = g.op("NonMaxSuppression", boxes, scores, *limits)  # group, class and box of each
        kept = g.op("Gather", kept, constant([0, 2]), axis_i=1)
        positive = g.op("ReduceMax", g.op("Cast", kept, to_i=1), axes_i=[1], keepdims_i=0)
        positive = g.op("Add", positive, constant(1.0))
        return g.op("ScatterND", constant(torch.zeros(num_groups, number)), kept, positive)
