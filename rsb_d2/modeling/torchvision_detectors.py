"""torchvision's detectors where they compute something else than Detectron2's.

torchvision's Faster, Mask and Keypoint R-CNN and RetinaNet on a ResNet-50 with FPN are stock
Detectron2 models on a timm backbone, but for the classes below. Their weights are converted by
``rsb_d2.checkpoint``; ``configs/*_torchvision*.yaml`` put the parts together.
"""

from typing import Dict, List, Sequence, Tuple

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY, DefaultAnchorGenerator
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers, fast_rcnn_inference
from detectron2.structures import Boxes, Instances
from torch import nn

from ..registration import register
from .heads import RetinaNetClippedBeforeNMS

# torchvision's RoIHeads.postprocess_detections: shorter sides, in pixels, are no detections.
_MIN_SIDE = 1e-2


@register(ANCHOR_GENERATOR_REGISTRY)
class TorchvisionAnchorGenerator(DefaultAnchorGenerator):
    """Anchors as ``torchvision.models.detection.anchor_utils.AnchorGenerator`` makes them.

    Differences from the stock generator: corners are rounded to integers; of several sizes per
    level, all sizes of the first aspect ratio come first; the stride of a level is the image size
    divided by the feature size, rounded down, not the nominal one. A padded height of 800 has 13
    rows in p6, 61 pixels apart instead of 64.

    The first level must have its nominal stride, which it has for images that are padded to a
    multiple of 32.
    """

    def generate_cell_anchors(
        self,
        sizes: Sequence[float] = (32, 64, 128, 256, 512),
        aspect_ratios: Sequence[float] = (0.5, 1, 2),
    ) -> torch.Tensor:
        """Make the anchors of one position, centered at (0, 0).

        Args:
            sizes (sequence of float): square roots of areas, in pixels.
            aspect_ratios (sequence of float): height / width.

        Returns:
            Tensor: (len(aspect_ratios) * len(sizes), 4), x0, y0, x1, y1 in pixels.
        """
        sides = torch.tensor(sizes, dtype=torch.float32)
        ratios = torch.tensor(aspect_ratios, dtype=torch.float32).sqrt()
        heights = (ratios[:, None] * sides).flatten()
        widths = ((1 / ratios)[:, None] * sides).flatten()
        return (torch.stack([-widths, -heights, widths, heights], dim=1) / 2).round()

    def forward(self, features: List[torch.Tensor]) -> List[Boxes]:
        """
        Args:
            features (list[Tensor]): of each level, (N, C, H, W).

        Returns:
            list[Boxes]: of each level, H * W * A anchors in pixels of the padded image.
        """
        height, width = (side * self.strides[0] for side in features[0].shape[-2:])
        anchors = []
        for feature, cell in zip(features, self.cell_anchors):
            rows, columns = feature.shape[-2:]
            y = torch.arange(rows, dtype=torch.float32, device=cell.device) * (height // rows)
            x = torch.arange(columns, dtype=torch.float32, device=cell.device) * (width // columns)
            y, x = torch.meshgrid(y, x, indexing="ij")
            shifts = torch.stack([x, y, x, y], dim=2).reshape(-1, 1, 4)
            anchors.append(Boxes((shifts + cell).reshape(-1, 4)))
        return anchors


class TorchvisionOutputLayers(FastRCNNOutputLayers):
    """Stock box predictor that drops boxes thinner than 0.01 pixels before NMS.

    As torchvision's ``RoIHeads.postprocess_detections``. Boxes outside of the image are clipped to
    no area; the stock predictor counts them among the best ``TEST.DETECTIONS_PER_IMAGE`` first.
    """

    def inference(
        self, predictions: Tuple[torch.Tensor, torch.Tensor], proposals: List[Instances]
    ) -> Tuple[List[Instances], List[torch.Tensor]]:
        """Detect as the stock method.

        Args:
            predictions (tuple[Tensor, Tensor]): logits of shape (R, K + 1) and deltas of shape
                (R, 4 * K) of the R proposals of all images.
            proposals (list[Instances]): of each image.

        Returns:
            list[Instances], list[Tensor]: of each image the detections, best first, and the
            indices of their proposals.
        """
        image_sizes = [x.image_size for x in proposals]
        all_boxes = self.predict_boxes(predictions, proposals)
        all_scores = []
        for boxes, scores, size in zip(
            all_boxes, self.predict_probs(predictions, proposals), image_sizes
        ):
            clipped = Boxes(boxes.reshape(-1, 4))
            clipped.clip(size)
            sides = clipped.tensor[:, 2:] - clipped.tensor[:, :2]
            is_thin = (sides < _MIN_SIDE).any(dim=1).view(len(boxes), boxes.shape[1] // 4)
            foreground = scores[:, :-1].masked_fill(is_thin, 0.0)
            all_scores.append(torch.cat([foreground, scores[:, -1:]], dim=1))
        return fast_rcnn_inference(
            all_boxes,
            all_scores,
            image_sizes,
            self.test_score_thresh,
            self.test_nms_thresh,
            self.test_topk_per_image,
        )


@register(ROI_HEADS_REGISTRY)
class TorchvisionROIHeads(StandardROIHeads):
    """``StandardROIHeads`` with :class:`TorchvisionOutputLayers`."""

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]) -> dict:
        ret = super()._init_box_head(cfg, input_shape)
        ret["box_predictor"] = TorchvisionOutputLayers(cfg, ret["box_head"].output_shape)
        return ret


@register(META_ARCH_REGISTRY)
class TorchvisionRetinaNet(RetinaNetClippedBeforeNMS):
    """The stock ``RetinaNet``, but boxes are clipped to the image before NMS, not after it.

    ``MODEL.RETINANET.NORM "GN"`` works as well, on which the stock head of Detectron2 0.6 fails.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        if cfg.MODEL.RETINANET.NORM != "GN":
            return super().from_config(cfg)
        without_norm = cfg.clone()
        without_norm.defrost()
        without_norm.MODEL.RETINANET.NORM = ""
        ret = super().from_config(without_norm)
        shapes = ret["backbone"].output_shape()
        head = RetinaNetHead.from_config(cfg, [shapes[f] for f in ret["head_in_features"]])
        # The stock head first makes a norm of one channel, which has no 32 groups.
        head["norm"] = lambda channels: nn.GroupNorm(min(32, channels), channels)
        ret["head"] = RetinaNetHead(**head)
        return ret
