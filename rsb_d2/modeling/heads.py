"""Detectron2's RPN without waiting for a GPU, and keypoint heads in channels-last."""

from typing import Any, Callable, Dict, List, Tuple

import torch
import torch.nn.functional as F
from detectron2.layers import batched_nms
from detectron2.modeling.box_regression import Box2BoxTransform, _dense_box_regression_loss
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.modeling.roi_heads.keypoint_head import (
    BaseKeypointRCNNHead,
    KRCNNConvDeconvUpsampleHead,
)
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import nn
from torchvision.ops import nms

from ..utils import has_hooks

# With more boxes than this on a GPU, torchvision calls one NMS per group.
_MOST_AT_ONCE = 25_000

# torch.jit.script replaces the class of this name by a function in some versions.
_Box2BoxTransform = type(Box2BoxTransform((1.0, 1.0, 1.0, 1.0)))

# From scores (N, M) and k to the k best of each row and their indices, best first.
Best = Callable[[torch.Tensor, int], Tuple[torch.Tensor, torch.Tensor]]


def clip(boxes: torch.Tensor, image_size: Tuple[int, int]) -> torch.Tensor:
    """Clip boxes to an image, as ``Boxes.clip`` but without its check for finite values.

    That check waits for the GPU.

    Args:
        boxes (Tensor): (..., 4), x0, y0, x1, y1 in pixels.
        image_size (tuple[int, int]): height and width.

    Returns:
        Tensor: (..., 4).
    """
    height, width = image_size
    x = boxes[..., 0::2].clamp(min=0, max=width)
    y = boxes[..., 1::2].clamp(min=0, max=height)
    return torch.stack([x, y], dim=-1).flatten(-2)


def shift_groups(boxes: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Move the boxes of each group to a separate place, so that groups do not overlap.

    Args:
        boxes (Tensor): (N, 4), x0, y0, x1, y1.
        groups (Tensor): (N,), integers from 0 on: levels or classes.

    Returns:
        Tensor: (N, 4).
    """
    extent = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max() + 1
    return boxes + (groups.to(boxes) * extent)[:, None]


def nms_of_groups(
    boxes: torch.Tensor, scores: torch.Tensor, groups: torch.Tensor, threshold: float
) -> torch.Tensor:
    """Detectron2's ``batched_nms``, which on a GPU does not wait for it.

    Args:
        boxes (Tensor): (N, 4), float32, x0, y0, x1, y1.
        scores (Tensor): (N,).
        groups (Tensor): (N,), integers: levels or classes. Boxes of different groups do not
            suppress each other.
        threshold (float): maximum IoU.

    Returns:
        Tensor: indices of the boxes to keep, best first.
    """
    if boxes.device.type == "cpu" or not 0 < len(boxes) <= _MOST_AT_ONCE:
        return batched_nms(boxes, scores, groups, threshold)
    return nms(shift_groups(boxes, groups), scores, threshold)


def decode_best(
    transform: Box2BoxTransform,
    anchors: List[torch.Tensor],
    logits: List[torch.Tensor],
    deltas: List[torch.Tensor],
    num: int,
    best: Best,
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Select the best anchors of each level and decode only these.

    Args:
        transform (Box2BoxTransform): decodes deltas.
        anchors (list[Tensor]): per level, (A, 4).
        logits (list[Tensor]): per level, (N, A).
        deltas (list[Tensor]): per level, (N, A, 4).
        num (int): how many anchors of each level and image to select; all if there are fewer.
        best (callable): selects them.

    Returns:
        Tensor, Tensor, Tensor: boxes (N, M, 4), best first in each level, their logits (N, M), and
        the level of each (M,).
    """
    chosen = []
    for level, values in enumerate(logits):
        values, index = best(values, num)
        chosen.append(
            (
                values,
                deltas[level].gather(1, index[:, :, None].expand(-1, -1, 4)),
                anchors[level][index],
                torch.full_like(index[0], level),
            )
        )
    values, of_deltas, of_anchors, levels = zip(*chosen)
    of_deltas, of_anchors = torch.cat(of_deltas, 1), torch.cat(of_anchors, 1)
    boxes = transform.apply_deltas(of_deltas.flatten(0, 1), of_anchors.flatten(0, 1))
    return boxes.unflatten(0, of_deltas.shape[:2]), torch.cat(values, 1), torch.cat(levels)


def _sort(values: torch.Tensor, num: int) -> Tuple[torch.Tensor, torch.Tensor]:
    """The selection of the stock RPN, so that of equal scores the same anchors are selected."""
    values, index = values.sort(descending=True, dim=1)
    return values[:, :num], index[:, :num]


def best(values: torch.Tensor, num: int) -> Tuple[torch.Tensor, torch.Tensor]:
    """The best values of each row, ordered as by a stable sort, without sorting all values.

    Args:
        values (Tensor): (N, M).
        num (int): how many of each row; all if there are fewer.

    Returns:
        Tensor, Tensor: values and indices, (N, min(num, M)), best first; of equal values those
        with the lowest index; on a GPU any of them, as in Detectron2's own sort.
    """
    is_cpu = values.device.type == "cpu"
    if not is_cpu or values.shape[1] <= num or not values.isfinite().all():
        values, index = values.sort(dim=1, descending=True, stable=is_cpu)
        return values[:, :num], index[:, :num]
    thresholds = values.topk(num, dim=1, sorted=False).values.amin(dim=1)
    indices = []
    for row, threshold in zip(values, thresholds):
        index = (row >= threshold).nonzero()[:, 0]
        indices.append(index[row[index].argsort(descending=True, stable=True)[:num]])
    index = torch.stack(indices)
    return values.gather(1, index), index


class FastRPN(RPN):
    """``RPN`` that selects anchors before it decodes them or encodes their ground truth.

    Proposals and losses equal those of the stock class. For the proposals, a GPU starts a third of
    the kernels, and is waited for twice and once per image instead of five times per image. For the
    losses, the number of kernels does not grow with the number of images.
    """

    best: Best = staticmethod(_sort)  # or :func:`best`, which is faster

    @classmethod
    def from_stock(cls, rpn: RPN) -> "FastRPN":
        """Make one with the layers and settings of an RPN for which :meth:`takes` holds."""
        settings = ("in_features", "anchor_generator", "anchor_matcher", "box2box_transform")
        settings += ("batch_size_per_image", "positive_fraction", "nms_thresh", "min_box_size")
        settings += ("anchor_boundary_thresh", "loss_weight", "box_reg_loss_type", "smooth_l1_beta")
        result = cls(
            head=rpn.rpn_head,
            pre_nms_topk=(rpn.pre_nms_topk[True], rpn.pre_nms_topk[False]),
            post_nms_topk=(rpn.post_nms_topk[True], rpn.post_nms_topk[False]),
            **{name: getattr(rpn, name) for name in settings},
        )
        result.training = rpn.training
        return result

    @staticmethod
    def takes(rpn: nn.Module) -> bool:
        """Whether a proposal generator can be replaced: without rotated boxes and without hooks."""
        return (
            type(rpn) in (RPN, FastRPN)
            and isinstance(rpn.box2box_transform, _Box2BoxTransform)
            and not has_hooks(rpn)
        )

    @torch.no_grad()
    def predict_proposals(
        self,
        anchors: List[Boxes],
        pred_objectness_logits: List[torch.Tensor],
        pred_anchor_deltas: List[torch.Tensor],
        image_sizes: List[Tuple[int, int]],
    ) -> List[Instances]:
        """As the stock method."""
        candidates = decode_best(
            self.box2box_transform,
            [boxes.tensor for boxes in anchors],
            pred_objectness_logits,
            pred_anchor_deltas,
            self.pre_nms_topk[self.training],
            self.best,
        )
        return self._select(*candidates, image_sizes)

    def losses(
        self,
        anchors: List[Boxes],
        pred_objectness_logits: List[torch.Tensor],
        gt_labels: List[torch.Tensor],
        pred_anchor_deltas: List[torch.Tensor],
        gt_boxes: List[torch.Tensor],
    ) -> Dict[str, torch.Tensor]:
        """As the stock method, which encodes the ground truth of all anchors, image by image.

        Only the sampled anchors count, a few hundred in each image.
        """
        num_images, labels = len(gt_labels), torch.stack(gt_labels)
        image, index = (labels >= 0).nonzero().unbind(1)
        labels = labels[image, index]
        is_positive = labels == 1
        localization_loss = _dense_box_regression_loss(
            [Boxes(Boxes.cat(anchors).tensor[index])],
            self.box2box_transform,
            [torch.cat(pred_anchor_deltas, dim=1)[image, index][None]],
            [torch.stack(gt_boxes)[image, index]],
            is_positive[None],
            box_reg_loss_type=self.box_reg_loss_type,
            smooth_l1_beta=self.smooth_l1_beta,
        )
        objectness_loss = F.binary_cross_entropy_with_logits(
            torch.cat(pred_objectness_logits, dim=1)[image, index],
            labels.to(torch.float32),
            reduction="sum",
        )
        storage, num_positive = get_event_storage(), is_positive.sum().item()
        storage.put_scalar("rpn/num_pos_anchors", num_positive / num_images)
        storage.put_scalar("rpn/num_neg_anchors", (len(labels) - num_positive) / num_images)
        normalizer = self.batch_size_per_image * num_images
        losses = {
            "loss_rpn_cls": objectness_loss / normalizer,
            "loss_rpn_loc": localization_loss / normalizer,
        }
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    def _select(
        self,
        boxes: torch.Tensor,
        logits: torch.Tensor,
        levels: torch.Tensor,
        image_sizes: List[Tuple[int, int]],
    ) -> List[Instances]:
        """The stock ``find_top_rpn_proposals``, from the output of :func:`decode_best`."""
        is_finite = boxes.isfinite().all(dim=2) & logits.isfinite()
        if self.training and not is_finite.all():
            raise FloatingPointError(
                "Predicted boxes or scores contain Inf/NaN. Training has diverged."
            )
        boxes = torch.stack([clip(b, size) for b, size in zip(boxes, image_sizes)])
        sides = boxes[..., 2:] - boxes[..., :2]
        is_good = is_finite & (sides > self.min_box_size).all(dim=2)
        image, index = is_good.nonzero().unbind(1)
        boxes, logits, levels = boxes[image, index], logits[image, index], levels[index]
        numbers = [len(boxes)] if len(image_sizes) == 1 else is_good.sum(1).tolist()
        proposals = []
        for size, b, scores, of_level in zip(
            image_sizes, boxes.split(numbers), logits.split(numbers), levels.split(numbers)
        ):
            keep = nms_of_groups(b, scores, of_level, self.nms_thresh)
            keep = keep[: self.post_nms_topk[self.training]]
            found = Instances(size)
            found.proposal_boxes = Boxes(b[keep])
            found.objectness_logits = scores[keep]
            proposals.append(found)
        return proposals


def make_logits_contiguous(model: nn.Module) -> None:
    """Let the keypoint heads of a model in channels-last return contiguous logits, in place.

    Detectron2's keypoint loss and decoding call ``view`` on the logits, which fails on
    channels-last tensors.
    """
    for module in model.modules():
        if type(module) is KRCNNConvDeconvUpsampleHead:
            # Its last step, an interpolation, keeps the format.
            module.score_lowres.register_forward_hook(_contiguous_output)
        elif isinstance(module, BaseKeypointRCNNHead):
            module.to(memory_format=torch.contiguous_format)
            module.register_forward_pre_hook(_contiguous_input)


def _contiguous_output(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output.contiguous()


def _contiguous_input(module: nn.Module, inputs: Tuple[Any, ...]) -> Tuple[Any, ...]:
    return inputs[0].contiguous(), *inputs[1:]
