"""A detector as a function from one image tensor to tensors, which torch can trace."""

from contextlib import contextmanager
from functools import partial
from typing import Dict, Iterator, List, Tuple
from unittest import mock

import torch
import torch.nn.functional as F
from detectron2.export.torchscript_patch import patch_builtin_len
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn

from ...errors import UserError
from .nms import traceable_nms

OUTPUTS = ("boxes", "scores", "classes", "masks")


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
    """Have Detectron2's ``ImageList.from_tensors`` traced without a division of integers.

    It rounds a side up by ``(side + 31) // 32 * 32``. OpenVINO multiplies by 1 / 32 and lets the
    two products cancel out, so that what is padded is no multiple of 32.
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
    """Detectron2 0.6 compares numbers of candidates, which tracing would fix once for all."""
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
