"""The box head, on pooled features that are channels-last, and the box predictor."""

from typing import List, Tuple

import torch
from detectron2.modeling.roi_heads.box_head import FastRCNNConvFCHead
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from torch import nn

from ...modeling.proposals import clip, nms_of_groups
from .conv import InferenceLinear


class FlattenChannelsLast(nn.Module):
    """``Flatten`` for a channels-last tensor, in the order that it has in memory."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x (Tensor): (N, C, H, W).

        Returns:
            Tensor: (N, H * W * C).
        """
        return x.permute(0, 2, 3, 1).flatten(1)


def flatten_channels_last(head: FastRCNNConvFCHead, pooled_size: Tuple[int, int]) -> None:
    """Let a box head flatten its features in their order in memory; the first layer's inputs move.

    Args:
        head (FastRCNNConvFCHead): changed in place; a head without linear layers stays.
        pooled_size (tuple[int, int]): height and width of what it takes.
    """
    layers = list(head.named_children())
    for (name, layer), (_, fc) in zip(layers, layers[1:]):
        if type(layer) is nn.Flatten and type(fc) is nn.Linear:
            weight = fc.weight.data.view(fc.out_features, -1, *pooled_size)
            fc.weight.data = weight.permute(0, 2, 3, 1).reshape(fc.out_features, -1)
            setattr(head, name, FlattenChannelsLast())


def replace_predictor(predictor: FastRCNNOutputLayers) -> None:
    """Let a box predictor compute in float32, whatever it takes, and decode less.

    Args:
        predictor (FastRCNNOutputLayers): the stock one; changed in place.
    """
    for name in ("cls_score", "bbox_pred"):
        setattr(predictor, name, InferenceLinear(getattr(predictor, name)))
    predictor.__class__ = InferenceOutputLayers


class InferenceOutputLayers(FastRCNNOutputLayers):
    """``FastRCNNOutputLayers`` that decodes boxes of scores above the threshold alone.

    Of all images together; the NMS is of each.
    """

    def inference(
        self, predictions: Tuple[torch.Tensor, torch.Tensor], proposals: List[Instances]
    ) -> Tuple[List[Instances], List[torch.Tensor]]:
        """As the stock method."""
        logits, deltas = predictions
        if not proposals or proposals[0].proposal_boxes.tensor.shape[1] != 4:
            return super().inference(predictions, proposals)
        if not (logits.isfinite().all() & deltas.isfinite().all()):
            return super().inference(predictions, proposals)
        probabilities = self.predict_probs(predictions, proposals)
        above = torch.cat(probabilities)[:, :-1] > self.test_score_thresh
        rows, classes = above.nonzero().unbind(1)
        scores = torch.cat(probabilities)[rows, classes]
        deltas = deltas.view(len(deltas), deltas.shape[1] // 4, 4)
        chosen = deltas[rows, classes if deltas.shape[1] > 1 else 0]
        anchors = torch.cat([p.proposal_boxes.tensor for p in proposals])[rows]
        boxes = self.box2box_transform.apply_deltas(chosen, anchors)

        sizes = [len(p) for p in proposals]
        numbers = [len(rows)]
        if len(proposals) > 1:
            numbers = torch.stack([a.sum() for a in above.split(sizes)]).tolist()
        results, start = [], 0
        parts = zip(*(x.split(numbers) for x in (boxes, scores, classes, rows)))
        for p, size, part in zip(proposals, sizes, parts):
            results.append(self._choose(*part, p.image_size, start))
            start += size
        return [r[0] for r in results], [r[1] for r in results]

    def _choose(
        self,
        boxes: torch.Tensor,
        scores: torch.Tensor,
        classes: torch.Tensor,
        rows: torch.Tensor,
        image_size: Tuple[int, int],
        first_row: int,
    ) -> Tuple[Instances, torch.Tensor]:
        """The end of the stock ``fast_rcnn_inference_single_image``."""
        boxes = clip(boxes, image_size)
        keep = nms_of_groups(boxes, scores, classes, self.test_nms_thresh)
        if self.test_topk_per_image >= 0:
            keep = keep[: self.test_topk_per_image]
        result = Instances(image_size)
        result.pred_boxes = Boxes(boxes[keep])
        result.scores = scores[keep]
        result.pred_classes = classes[keep]
        return result, rows[keep] - first_row
