"""Detectors to be optimized, and what they must find afterwards."""

import torch

from rsb_d2.addons.accelerate.layers import can_fold
from tests.helpers.seeded_run import make_seeded_config, make_seeded_model


@torch.enable_grad()
def make_detector(kind, *opts, device="cpu"):
    model = make_seeded_model(make_seeded_config(kind, "MODEL.DEVICE", device, *opts))
    randomise_norms(model, last="bn2")
    if kind == "retinanet":  # scores that are not all 1
        model.head.cls_score.weight.data *= 0.3
    return model


def randomise_norms(model, last=("bn3", "conv3.norm")):
    """Statistics and weights of batch norms that are not those of a fresh layer.

    Those of the last layers of residual blocks are small, so that features do not grow.
    """
    with torch.no_grad():
        for name, norm in model.named_modules():
            if not can_fold(norm):
                continue
            # Drawn on the CPU, so that the numbers are those of any device.
            empty = torch.empty(norm.running_mean.shape)
            norm.running_mean.copy_(empty.normal_(0, 0.1))
            norm.running_var.copy_(empty.uniform_(0.5, 1.5))
            size = 0.3 if name.endswith(last) else 1.0
            norm.weight.copy_(empty.uniform_(0.7 * size, 1.3 * size))
            norm.bias.copy_(empty.normal_(0, 0.1))


def make_images(*sizes):
    rng = torch.Generator().manual_seed(3)
    return [
        {"image": torch.randint(0, 256, (3, h, w), dtype=torch.uint8, generator=rng)}
        for h, w in sizes
    ]


def check_detections(expected, found, score=1e-4, box=0.01):
    """The same detections; of equal scores in any order."""
    for a, b in zip(expected, found):
        a, b = a["instances"], b["instances"]
        assert a.get_fields().keys() == b.get_fields().keys()
        assert a.image_size == b.image_size and len(a) == len(b)
        if not len(a):
            continue
        distance = (a.pred_boxes.tensor[:, None] - b.pred_boxes.tensor).abs().amax(2)
        distance += (a.scores[:, None] - b.scores).abs()
        distance += 1e4 * (a.pred_classes[:, None] != b.pred_classes)
        nearest = distance.argmin(1)
        assert sorted(nearest.tolist()) == list(range(len(a)))
        b = b[nearest]
        assert torch.equal(a.pred_classes, b.pred_classes)
        torch.testing.assert_close(a.scores, b.scores, atol=score, rtol=0)
        torch.testing.assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor, atol=box, rtol=0)
        if a.has("pred_masks"):
            assert (a.pred_masks != b.pred_masks).float().mean() < 1e-3
