"""A detector as Detectron2 runs it on a batch that is padded to a given size."""

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.structures import ImageList
from torch.utils._python_dispatch import TorchDispatchMode

from rsb_d2.addons.workbench.sample.draw import draw_picture

C4 = [
    *("MODEL.BACKBONE.NAME", "build_timm_c4_backbone", "MODEL.TIMM.OUT_FEATURES", "['res4']"),
    *("MODEL.RPN.IN_FEATURES", "['res4']", "MODEL.ROI_HEADS.IN_FEATURES", "['res4']"),
    *("MODEL.ROI_HEADS.NAME", "TimmRes5ROIHeads", "MODEL.ROI_MASK_HEAD.NUM_CONV", "0"),
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[32, 64, 128]]", "MODEL.RPN.POST_NMS_TOPK_TEST", "20"),
]


def make_batch(sizes, padded, fill=255, seed=0):
    """Pictures of the sizes in the corners of images (B, 3, H, W), and their sizes (B, 2)."""
    images = torch.full((len(sizes), 3, *padded), fill, dtype=torch.uint8)
    for i, (height, width) in enumerate(sizes):
        picture = draw_picture(np.random.default_rng(seed + i), max(height, width, 64))[0]
        picture = np.resize(picture, (height, width, 3))
        images[i, :, :height, :width] = torch.from_numpy(picture.transpose(2, 0, 1).copy())
    return images, torch.tensor(sizes)


@torch.no_grad()
def detect(model, images, sizes):
    """Instances of each image, in the pixels of the input, without empty boxes."""
    divisor = model.backbone.size_divisibility
    sizes = [tuple(size) for size in sizes.tolist()]
    padded = [-side % divisor for side in images.shape[2:]]
    tensor = images.new_zeros((len(images), 3, *images.shape[2:]), dtype=torch.float32)
    for i, (h, w) in enumerate(sizes):
        tensor[i, :, :h, :w] = (images[i, :, :h, :w] - model.pixel_mean) / model.pixel_std
    batch = ImageList(F.pad(tensor, (0, padded[1], 0, padded[0])), sizes)
    features = model.backbone(batch.tensor)
    if hasattr(model, "roi_heads"):
        proposals, _ = model.proposal_generator(batch, features, None)
        found, _ = model.roi_heads(batch, features, proposals, None)
    else:
        features = [features[name] for name in model.head_in_features]
        found = model.forward_inference(batch, features, model.head(features))
    for instances in found:
        instances.pred_boxes.clip(instances.image_size)
    return [instances[instances.pred_boxes.nonempty()] for instances in found]


def check_equal(expected, outputs, score=1e-5, box=1e-2, mask=1e-4):
    """The same detections in the same order, and zeros after them; returns their numbers."""
    numbers = outputs["num_detections"].tolist()
    assert numbers == [len(instances) for instances in expected]
    for i, (instances, number) in enumerate(zip(expected, numbers)):
        found = {name: values[i] for name, values in outputs.items()}
        close = dict(rtol=0)
        torch.testing.assert_close(found["scores"][:number], instances.scores, atol=score, **close)
        boxes = instances.pred_boxes.tensor
        torch.testing.assert_close(found["boxes"][:number], boxes, atol=box, **close)
        assert torch.equal(found["classes"][:number], instances.pred_classes)
        if instances.has("pred_masks"):
            masks = instances.pred_masks[:, 0]
            torch.testing.assert_close(found["masks"][:number], masks, atol=mask, **close)
        for name in ("boxes", "scores", "classes", "masks"):
            assert name not in found or not found[name][number:].any()
    return numbers


class NothingIsRead(TorchDispatchMode):
    """Fails at operators that read a value from the device, or whose shape depends on one."""

    NAMES = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "equal", "is_nonzero")
    NAMES += ("repeat_interleave.Tensor", "bincount", "torchvision::nms")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert not any(name in str(function) for name in self.NAMES), function
        if str(function).startswith("aten.index.Tensor"):
            assert all(i is None or i.dtype != torch.bool for i in args[1]), function
        return function(*args, **(kwargs or {}))
