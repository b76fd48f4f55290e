"""The RPN and the box head for inference: few boxes are decoded, in few kernels."""

from typing import Any, Callable, Dict, List, Tuple

import torch
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from detectron2.modeling.roi_heads.box_head import FastRCNNConvFCHead
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn

from ...modeling.heads import FastRPN, clip, decode_best, nms_of_groups
from .layers import InferenceConv2d, InferenceLinear

# Anchors and CUDA graphs are kept for at most this many image sizes. COCO has about 40 of them with
# a shorter side of 800 pixels, padded to 32.
MAX_SIZES = 64


class InferenceRPNHead(nn.Module):
    """``StandardRPNHead`` with one convolution for both of its outputs, in float32.

    float32 costs next to nothing here; bfloat16 would cost 0.1 AP on the sample data.

    Args:
        head (StandardRPNHead): its hidden layers are taken over as they are.
    """

    def __init__(self, head: StandardRPNHead):
        super().__init__()
        self.conv = head.conv
        logits, deltas = head.objectness_logits, head.anchor_deltas
        self.num_logits = logits.out_channels
        both = nn.Conv2d(logits.in_channels, logits.out_channels + deltas.out_channels, 1)
        both.weight.data = torch.cat([logits.weight.data, deltas.weight.data])
        both.bias.data = torch.cat([logits.bias.data, deltas.bias.data])
        self.logits_and_deltas = InferenceConv2d(both)

    @staticmethod
    def takes(head: nn.Module) -> bool:
        """Whether a head is the stock one."""
        return type(head) is StandardRPNHead

    def forward(
        self, features: List[torch.Tensor]
    ) -> Tuple[List[torch.Tensor], List[torch.Tensor]]:
        """As the stock method."""
        outputs = [self.logits_and_deltas(self.conv(x)) for x in features]
        return [y[:, : self.num_logits] for y in outputs], [
            y[:, self.num_logits :] for y in outputs
        ]


class InferenceRPN(FastRPN):
    """:class:`FastRPN` with an :class:`InferenceRPNHead`, whose candidates can be replayed.

    Attributes:
        replayed (callable or None): called instead of :meth:`candidates`; a copy has none.
    """

    replayed: Callable[..., Any] | None = None
    _anchors: Dict[Any, List[Boxes]] | None = None  # by the sizes of the features

    def __getstate__(self) -> Dict[str, Any]:
        dropped = ("replayed", "_anchors")
        return {k: v for k, v in super().__getstate__().items() if k not in dropped}

    def forward(
        self,
        images: ImageList,
        features: Dict[str, torch.Tensor],
        gt_instances: List[Instances] | None = None,
    ) -> Tuple[List[Instances], Dict[str, torch.Tensor]]:
        """As the stock method at inference."""
        candidates = self.candidates if self.replayed is None else self.replayed
        boxes, logits, levels = candidates([features[f] for f in self.in_features])
        return self._select(boxes, logits, levels, images.image_sizes), {}

    def candidates(
        self, features: List[torch.Tensor]
    ) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The boxes that the proposals are selected from, without waiting for a GPU.

        Args:
            features (list[Tensor]): per level, (N, C, H, W).

        Returns:
            Tensor, Tensor, Tensor: boxes (N, M, 4) in pixels, best first in each level, logits
            (N, M) and the level of each (M,), of a size that depends on that of the features only.
        """
        logits, deltas = self.rpn_head(features)
        return decode_best(
            self.box2box_transform,
            [boxes.tensor for boxes in self._anchors_of(features)],
            [x.permute(0, 2, 3, 1).flatten(1) for x in logits],
            # (N, A * 4, H, W) -> (N, H * W * A, 4)
            [x.permute(0, 2, 3, 1).reshape(len(x), -1, 4) for x in deltas],
            self.pre_nms_topk[False],
            best,
        )

    def _anchors_of(self, features: List[torch.Tensor]) -> List[Boxes]:
        """Anchors; on a GPU they are made once per size, and kept for a CUDA graph."""
        if features[0].device.type == "cpu":
            return self.anchor_generator(features)
        if self._anchors is None:
            self._anchors = {}
        key = (features[0].device, *(f.shape[-2:] for f in features))
        if key not in self._anchors:
            anchors = self.anchor_generator(features)
            if len(self._anchors) >= MAX_SIZES:
                return anchors
            self._anchors[key] = anchors
        return self._anchors[key]


def best(values: torch.Tensor, num: int) -> Tuple[torch.Tensor, torch.Tensor]:
    """The best values of each row, ordered as by a stable sort, without sorting all values.

    Args:
        values (Tensor): (N, M).
        num (int): how many of each row; all if there are fewer.

    Returns:
        Tensor, Tensor: values and indices, (N, min(num, M)), best first; of equal values those
        with the lowest index; on a GPU any of them, as in Detectron2's own sort.
    """
    if values.device.type != "cpu":
        return values.topk(min(num, values.shape[1]), dim=1)
    if values.shape[1] <= num or not values.isfinite().all():
        values, index = values.sort(dim=1, descending=True, stable=True)
        return values[:, :num], index[:, :num]
    thresholds = values.topk(num, dim=1, sorted=False).values.amin(dim=1)
    indices = []
    for row, threshold in zip(values, thresholds):
        index = (row >= threshold).nonzero()[:, 0]
        indices.append(index[row[index].argsort(descending=True, stable=True)[:num]])
    index = torch.stack(indices)
    return values.gather(1, index), index


class FlattenChannelsLast(nn.Module):
    """``Flatten`` for a channels-last tensor, in its memory order."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x (Tensor): (N, C, H, W).

        Returns:
            Tensor: (N, H * W * C).
        """
        return x.permute(0, 2, 3, 1).flatten(1)


def flatten_channels_last(head: FastRCNNConvFCHead, pooled_size: Tuple[int, int]) -> None:
    """Let a box head flatten features in their memory order; reorder the inputs of its first layer.

    Args:
        head (FastRCNNConvFCHead): changed in place; a head without linear layers stays.
        pooled_size (tuple[int, int]): height and width of its input.
    """
    layers = list(head.named_children())
    for (name, layer), (_, fc) in zip(layers, layers[1:]):
        if type(layer) is nn.Flatten and type(fc) is nn.Linear:
            weight = fc.weight.data.view(fc.out_features, -1, *pooled_size)
            fc.weight.data = weight.permute(0, 2, 3, 1).reshape(fc.out_features, -1)
            setattr(head, name, FlattenChannelsLast())


class InferenceOutputLayers(FastRCNNOutputLayers):
    """``FastRCNNOutputLayers`` that computes in float32, and decodes few boxes.

    Only boxes with scores above the threshold are decoded, of all images at once. NMS is per image.
    """

    _SETTINGS = ("num_classes", "box2box_transform", "test_score_thresh", "test_nms_thresh")
    _SETTINGS += ("test_topk_per_image", "use_sigmoid_ce")  # the last one of Detectron2's main

    def __init__(self, predictor: FastRCNNOutputLayers):
        """
        Args:
            predictor (FastRCNNOutputLayers): a stock one; its weights are taken over.
        """
        nn.Module.__init__(self)
        for name in self._SETTINGS:
            if hasattr(predictor, name):
                setattr(self, name, getattr(predictor, name))
        self.cls_score = InferenceLinear(predictor.cls_score)
        self.bbox_pred = InferenceLinear(predictor.bbox_pred)

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
