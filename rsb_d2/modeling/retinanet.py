"""RetinaNet where OpenMMLab's, which the published weights were trained with, differs."""

from typing import List, Tuple

import torch
from detectron2.layers import batched_nms
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes, Instances

from ..registration import register


class LastLevelP6P7WithoutReLU(LastLevelP6P7):
    """P6 and P7 of res5, with nothing between the two convolutions.

    MMDetection's ``FPN`` with ``add_extra_convs="on_input"`` and ``relu_before_extra_convs=False``,
    its default; Detectron2's stock module applies a ReLU to P6 first. The parameters are the same.
    """

    def forward(self, c5: torch.Tensor) -> List[torch.Tensor]:
        """
        Args:
            c5 (Tensor): (N, C, H, W).

        Returns:
            list[Tensor]: p6 at half and p7 at a quarter of its resolution.
        """
        p6 = self.p6(c5)
        return [p6, self.p7(p6)]


@register(META_ARCH_REGISTRY)
class OpenMMLabRetinaNet(RetinaNet):
    """The stock ``RetinaNet``, but for what MMDetection's ``RetinaHead`` does otherwise.

    Boxes are clipped to the image before NMS rather than after it, and the losses of a batch are
    divided by the number of its own positive anchors rather than by a running average of that.
    """

    def inference_single_image(
        self,
        anchors: List[Boxes],
        box_cls: List[torch.Tensor],
        box_delta: List[torch.Tensor],
        image_size: Tuple[int, int],
    ) -> Instances:
        """As the stock method (MMDetection's ``BaseDenseHead._predict_by_feat_single``).

        Args:
            anchors (list[Boxes]): of each level, H * W * A boxes.
            box_cls (list[Tensor]): of each level, scores of shape (H * W * A, K).
            box_delta (list[Tensor]): of each level, deltas of shape (H * W * A, 4).
            image_size (tuple[int, int]): height and width without padding.

        Returns:
            Instances: of one image, best first.
        """
        pred = self._decode_multi_level_predictions(
            anchors,
            box_cls,
            box_delta,
            self.test_score_thresh,
            self.test_topk_candidates,
            image_size,
        )
        pred.pred_boxes.clip(image_size)
        # Without what lies outside the image altogether; by index, which waits for a GPU once.
        pred = pred[pred.pred_boxes.nonempty().nonzero()[:, 0]]
        keep = batched_nms(
            pred.pred_boxes.tensor, pred.scores, pred.pred_classes, self.test_nms_thresh
        )
        return pred[keep[: self.max_detections_per_image]]

    def _ema_update(self, name: str, value: float, *args, **kwargs) -> float:
        """The stock losses divide by what this returns: here the count itself, without memory."""
        return value
