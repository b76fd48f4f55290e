"""The RPN: proposals are chosen before they are decoded."""

from typing import Any, Callable, Dict, List, Tuple

import torch
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn

from ...modeling.proposals import ChoosingRPN
from .conv import InferenceConv2d

# Of as many sizes of images a GPU keeps what depends on it alone. Images of COCO, their shorter
# side 800 pixels, have about 40 when padded to 32.
MAX_SIZES = 64


class InferenceRPNHead(nn.Module):
    """``StandardRPNHead`` with one convolution for both of its outputs, in float32.

    That costs next to nothing, and in bfloat16 it would cost 0.1 AP on the sample data.

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


class InferenceRPN(ChoosingRPN):
    """:class:`ChoosingRPN` whose candidates can be replayed, with an :class:`InferenceRPNHead`.

    Attributes:
        replayed (callable or None): in the place of :meth:`candidates`; a copy has none.
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
        return self._choose(boxes, logits, levels, images.image_sizes), {}

    def candidates(
        self, features: List[torch.Tensor]
    ) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the proposals are chosen from: of fixed size, without waiting for a GPU.

        Args:
            features (list[Tensor]): of each level, (N, C, H, W).

        Returns:
            Tensor, Tensor, Tensor: boxes (N, M, 4) in pixels, best first in each level, logits
            (N, M) and each one's level (M,).
        """
        num = self.pre_nms_topk[False]
        anchors = self._anchors_of(features)
        chosen_logits, chosen_deltas, chosen_anchors, levels = [], [], [], []
        for level, (logits, deltas) in enumerate(zip(*self.rpn_head(features))):
            logits, index = best(logits.permute(0, 2, 3, 1).flatten(1), num)
            size, where = len(deltas), index[:, :, None].expand(-1, -1, 4)
            # (N, A * 4, H, W) -> (N, H * W * A, 4)
            deltas = deltas.permute(0, 2, 3, 1).reshape(size, -1, 4)
            chosen_logits.append(logits)
            chosen_deltas.append(deltas.gather(1, where))
            chosen_anchors.append(anchors[level].tensor[index])
            levels.append(torch.full_like(index[0], level))
        deltas, of_deltas = torch.cat(chosen_deltas, 1), torch.cat(chosen_anchors, 1)
        boxes = self.box2box_transform.apply_deltas(deltas.view(-1, 4), of_deltas.view(-1, 4))
        return boxes.view(deltas.shape), torch.cat(chosen_logits, 1), torch.cat(levels)

    def _anchors_of(self, features: List[torch.Tensor]) -> List[Boxes]:
        """Anchors; on a GPU they are made once for each size, and kept for a CUDA graph."""
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
    """The best values of each row, as a stable sort would order them, without sorting all.

    Args:
        values (Tensor): (N, M).
        num (int): how many of each row; all if there are not so many.

    Returns:
        Tensor, Tensor: values and indices, (N, min(num, M)), best first; of equal values those
        with the lowest index, but on a GPU any of them, as by Detectron2's own sort.
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
