"""Heads of the published detectors, where these compute something else than Detectron2's.

OpenMMLab trained its weights with MMDetection. torchvision's Faster, Mask and Keypoint R-CNN and
RetinaNet on a ResNet-50 with FPN are stock Detectron2 models on a timm backbone, except for the
classes below.
"""

from typing import Dict, List, Sequence, Tuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, batched_nms
from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY, DefaultAnchorGenerator
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.meta_arch.retinanet import RetinaNet, RetinaNetHead
from detectron2.modeling.roi_heads import (
    CascadeROIHeads,
    StandardROIHeads,
    select_foreground_proposals,
)
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers, fast_rcnn_inference
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import nn

from ..errors import UserError
from ..registration import register


@register(ROI_HEADS_REGISTRY)
class OpenMMLabCascadeROIHeads(CascadeROIHeads):
    """The stock ``CascadeROIHeads`` with the differences of MMDetection's ``CascadeRoIHead``.

    At inference the *logits* of the stages are averaged before the softmax, and there is a mask
    head for each stage, whose sigmoids are averaged. In training every stage samples its own
    proposals as the first one does (ground truth added), trains its own mask head on them, and its
    losses have a weight; the gradient into the features is not scaled.
    """

    @configurable
    def __init__(self, *, stage_loss_weights: Sequence[float], **kwargs):
        """Args:
        stage_loss_weights (sequence of float): for each stage, the factor of its losses.
        kwargs: arguments of :class:`CascadeROIHeads`; ``mask_head`` is an ``nn.ModuleList``
            with a head for each stage.
        """
        super().__init__(**kwargs)
        if len(stage_loss_weights) != self.num_cascade_stages:
            raise UserError(
                f"MODEL.ROI_BOX_CASCADE_HEAD.STAGE_LOSS_WEIGHTS: {list(stage_loss_weights)} must "
                f"have one weight for each of the {self.num_cascade_stages} stages of IOUS"
            )
        self.stage_loss_weights = list(stage_loss_weights)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]) -> dict:
        ret = super().from_config(cfg, input_shape)
        ret["stage_loss_weights"] = cfg.MODEL.ROI_BOX_CASCADE_HEAD.STAGE_LOSS_WEIGHTS
        return ret

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]) -> dict:
        ret = super()._init_mask_head(cfg, input_shape)
        if ret:
            heads = [ret["mask_head"]]
            while len(heads) < len(cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS):
                heads.append(super()._init_mask_head(cfg, input_shape)["mask_head"])
            ret["mask_head"] = nn.ModuleList(heads)
        return ret

    def forward(
        self,
        images: ImageList,
        features: Dict[str, torch.Tensor],
        proposals: List[Instances],
        targets: List[Instances] | None = None,
    ) -> Tuple[List[Instances], Dict[str, torch.Tensor]]:
        """As :meth:`ROIHeads.forward`.

        In training it returns the proposals that the first stage sampled, and the losses
        ``loss_cls_stage0``, ``loss_box_reg_stage0``, ``loss_mask_stage0``, ``loss_cls_stage1`` ...
        """
        if not self.training:
            return super().forward(images, features, proposals)
        image_sizes = [x.image_size for x in proposals]
        box_features = [features[f] for f in self.box_in_features]
        losses = {}
        for stage in range(self.num_cascade_stages):
            with get_event_storage().name_scope(f"stage{stage}"):
                proposals = self._label_and_sample(proposals, targets, stage)
                predictions = self._run_stage(box_features, proposals, stage)
                stage_losses = self.box_predictor[stage].losses(predictions, proposals)
                stage_losses.update(self._mask_losses(features, proposals, stage))
            for name, loss in stage_losses.items():
                losses[f"{name}_stage{stage}"] = loss * self.stage_loss_weights[stage]
            if stage == 0:
                first_proposals = proposals
                losses.update(self._forward_keypoint(features, proposals))
            with torch.no_grad():
                boxes = self.box_predictor[stage].predict_boxes(predictions, proposals)
                boxes = [b[~self._are_ground_truth(p)] for b, p in zip(boxes, proposals)]
                proposals = self._create_proposals_from_boxes(boxes, image_sizes)
                for p in proposals:  # ground truth is added only where there is this field
                    p.objectness_logits = p.proposal_boxes.tensor.new_zeros(len(p))
        return first_proposals, losses

    def _label_and_sample(
        self, proposals: List[Instances], targets: List[Instances], stage: int
    ) -> List[Instances]:
        self.proposal_matcher = self.proposal_matchers[stage]
        return self.label_and_sample_proposals(proposals, targets)

    def _are_ground_truth(self, proposals: Instances) -> torch.Tensor:
        """Whether each sampled proposal of an image is a ground-truth box that was added.

        The next stage adds the ground truth again instead of refining these.
        """
        if not proposals.has("gt_boxes"):  # an image without objects
            return torch.zeros_like(proposals.gt_classes, dtype=torch.bool)
        same = (proposals.proposal_boxes.tensor == proposals.gt_boxes.tensor).all(dim=1)
        return same & (proposals.gt_classes != self.num_classes)

    def _run_stage(
        self, features: List[torch.Tensor], proposals: List[Instances], stage: int
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        box_features = self.box_pooler(features, [x.proposal_boxes for x in proposals])
        return self.box_predictor[stage](self.box_head[stage](box_features))

    def _forward_box(
        self, features: Dict[str, torch.Tensor], proposals: List[Instances]
    ) -> List[Instances]:
        """Boxes, scores and classes at inference (MMDetection's ``_refine_roi``)."""
        features = [features[f] for f in self.box_in_features]
        image_sizes = [x.image_size for x in proposals]
        logits = []
        for stage in range(self.num_cascade_stages):
            predictions = self._run_stage(features, proposals, stage)
            logits.append(predictions[0])
            if stage < self.num_cascade_stages - 1:
                boxes = self.box_predictor[stage].predict_boxes(predictions, proposals)
                proposals = self._create_proposals_from_boxes(boxes, image_sizes)
        mean_logits = sum(logits) / self.num_cascade_stages
        instances, _ = self.box_predictor[-1].inference((mean_logits, predictions[1]), proposals)
        return instances

    def _mask_features(self, features: Dict[str, torch.Tensor], boxes: List[Boxes]) -> torch.Tensor:
        return self.mask_pooler([features[f] for f in self.mask_in_features], boxes)

    def _mask_losses(
        self, features: Dict[str, torch.Tensor], proposals: List[Instances], stage: int
    ) -> Dict[str, torch.Tensor]:
        if not self.mask_on:
            return {}
        proposals, _ = select_foreground_proposals(proposals, self.num_classes)
        mask_features = self._mask_features(features, [x.proposal_boxes for x in proposals])
        return self.mask_head[stage](mask_features, proposals)

    def _forward_mask(
        self, features: Dict[str, torch.Tensor], instances: List[Instances]
    ) -> List[Instances]:
        """Masks at inference: the mean of the stages' probabilities on the final boxes."""
        if not self.mask_on:
            return instances
        mask_features = self._mask_features(features, [x.pred_boxes for x in instances])
        masks_of_stages = []
        for mask_head in self.mask_head:
            instances = mask_head(mask_features, instances)
            masks_of_stages.append([x.pred_masks for x in instances])
        for instances_per_image, masks in zip(instances, zip(*masks_of_stages)):
            instances_per_image.pred_masks = torch.stack(masks).mean(dim=0)
        return instances


class LastLevelP6P7WithoutReLU(LastLevelP6P7):
    """P6 and P7 from res5, with nothing between the two convolutions.

    MMDetection's ``FPN`` with ``add_extra_convs="on_input"`` and ``relu_before_extra_convs=False``,
    its default; Detectron2's stock module applies a ReLU to P6 first. The parameters are the same.
    """

    def forward(self, c5: torch.Tensor) -> List[torch.Tensor]:
        """Return p6 at half and p7 at a quarter of the resolution of ``c5`` (N, C, H, W)."""
        p6 = self.p6(c5)
        return [p6, self.p7(p6)]


class RetinaNetClippedBeforeNMS(RetinaNet):
    """The stock ``RetinaNet``, but boxes are clipped to the image before NMS, not after it.

    As in MMDetection and torchvision.
    """

    drops_empty_boxes = False  # whether boxes outside the image are dropped before NMS

    def inference_single_image(
        self,
        anchors: List[Boxes],
        box_cls: List[torch.Tensor],
        box_delta: List[torch.Tensor],
        image_size: Tuple[int, int],
    ) -> Instances:
        """Detect in one image as the stock method, with the same arguments."""
        pred = self._decode_multi_level_predictions(
            anchors,
            box_cls,
            box_delta,
            self.test_score_thresh,
            self.test_topk_candidates,
            image_size,
        )
        pred.pred_boxes.clip(image_size)
        if self.drops_empty_boxes:  # by index, which waits for a GPU only once
            pred = pred[pred.pred_boxes.nonempty().nonzero()[:, 0]]
        keep = batched_nms(
            pred.pred_boxes.tensor, pred.scores, pred.pred_classes, self.test_nms_thresh
        )
        return pred[keep[: self.max_detections_per_image]]


@register(META_ARCH_REGISTRY)
class OpenMMLabRetinaNet(RetinaNetClippedBeforeNMS):
    """The stock ``RetinaNet`` with the differences of MMDetection's ``RetinaHead``.

    Boxes are clipped to the image before NMS rather than after it, and the losses of a batch are
    divided by the number of its own positive anchors rather than by a running average of it.
    """

    drops_empty_boxes = True  # MMDetection's BaseDenseHead._predict_by_feat_single

    def _ema_update(self, name: str, value: float, *args, **kwargs) -> float:
        """Return the count itself, by which the stock losses divide, instead of an average."""
        return value


# torchvision's RoIHeads.postprocess_detections: shorter sides, in pixels, are no detections.
MIN_SIDE = 1e-2


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
        """Detect as the stock method, with the same arguments and results."""
        image_sizes = [x.image_size for x in proposals]
        all_boxes = self.predict_boxes(predictions, proposals)
        all_scores = []
        for boxes, scores, size in zip(
            all_boxes, self.predict_probs(predictions, proposals), image_sizes
        ):
            clipped = Boxes(boxes.reshape(-1, 4))
            clipped.clip(size)
            sides = clipped.tensor[:, 2:] - clipped.tensor[:, :2]
            is_thin = (sides < MIN_SIDE).any(dim=1).view(len(boxes), boxes.shape[1] // 4)
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
