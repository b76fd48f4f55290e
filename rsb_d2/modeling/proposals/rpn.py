"""The RPN in training: proposals are chosen before they are decoded."""

from typing import List, Tuple

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.structures import Boxes, Instances
from torch import nn

from .nms import clip, nms_of_groups


class ChoosingRPN(RPN):
    """``RPN`` that decodes the best anchors of each level alone, not all and then chooses.

    The proposals are the stock ones, with a third of the kernels on a GPU, and with two waits for
    it and one for each image where the stock one waits five times for each.

    A stock ``RPN`` becomes one by setting its class; it has the same attributes.
    """

    @staticmethod
    def takes(rpn: nn.Module) -> bool:
        """Whether a proposal generator is the stock one or this, of boxes that are not rotated."""
        kinds = (RPN, ChoosingRPN)
        return type(rpn) in kinds and isinstance(rpn.box2box_transform, _Box2BoxTransform)

    @torch.no_grad()
    def predict_proposals(
        self,
        anchors: List[Boxes],
        pred_objectness_logits: List[torch.Tensor],
        pred_anchor_deltas: List[torch.Tensor],
        image_sizes: List[Tuple[int, int]],
    ) -> List[Instances]:
        """As the stock method."""
        num = self.pre_nms_topk[self.training]
        logits, deltas, of_deltas, levels = [], [], [], []
        for level, values in enumerate(pred_objectness_logits):
            # Sorted as by the stock method, so that of equal ones the same are chosen.
            values, index = values.sort(descending=True, dim=1)
            index = index[:, :num]
            logits.append(values[:, :num])
            where = index[:, :, None].expand(-1, -1, 4)
            deltas.append(pred_anchor_deltas[level].gather(1, where))
            of_deltas.append(anchors[level].tensor[index])
            levels.append(torch.full_like(index[0], level))
        deltas, of_deltas = torch.cat(deltas, 1), torch.cat(of_deltas, 1)
        boxes = self.box2box_transform.apply_deltas(deltas.view(-1, 4), of_deltas.view(-1, 4))
        return self._choose(
            boxes.view(deltas.shape), torch.cat(logits, 1), torch.cat(levels), image_sizes
        )

    def _choose(
        self,
        boxes: torch.Tensor,
        logits: torch.Tensor,
        levels: torch.Tensor,
        image_sizes: List[Tuple[int, int]],
    ) -> List[Instances]:
        """As the stock ``find_top_rpn_proposals``."""
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


# What torch.jit.script makes of the name is no class in all versions.
_Box2BoxTransform = type(Box2BoxTransform((1.0, 1.0, 1.0, 1.0)))
