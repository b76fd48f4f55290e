"""The published Cascade Mask R-CNN, part by part, beside MMDetection's formulas written out."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.nn import functional as F
from torchvision.ops import batched_nms, roi_align

from rsb_d2 import UserError
from tests.helpers.devices import tolerance
from tests.helpers.weights.openmmlab import Detector, build, make_targets


@pytest.fixture(scope="module")
def cascade(tmp_path_factory, device):
    return Detector("cascade_mask_rcnn", tmp_path_factory.mktemp("openmmlab"), device)


STDS = [(0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067)]


def cascade_by_hand(detector, boxes):
    """The boxes and the scores of three stages, by MMDetection's formulas and names.

    Every box has to be small, so that all the features are of p2.
    """
    weights, p2 = detector.weights, detector.features["p2"]
    all_logits = []
    for stage, stds in enumerate(STDS):
        prefix = f"roi_head.bbox_head.{stage}."
        layers = {k[len(prefix) :]: w for k, w in weights.items() if k.startswith(prefix)}
        x = roi_align(p2, [boxes], 7, 1 / 4, -1, aligned=True).flatten(1)
        for i in range(2):
            x = F.relu(
                F.linear(x, layers[f"shared_fcs.{i}.weight"], layers[f"shared_fcs.{i}.bias"])
            )
        all_logits.append(F.linear(x, layers["fc_cls.weight"], layers["fc_cls.bias"]))
        d = F.linear(x, layers["fc_reg.weight"], layers["fc_reg.bias"]) * torch.tensor(stds).to(
            boxes
        )
        size = boxes[:, 2:] - boxes[:, :2]
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2 + d[:, :2] * size
        half = size * d[:, 2:].exp() / 2
        boxes = torch.cat([centre - half, centre + half], dim=1)
        boxes = torch.stack(
            [boxes[:, i].clamp(0, limit) for i, limit in enumerate((320, 256, 320, 256))], dim=1
        )
    return boxes, (sum(all_logits) / 3).softmax(dim=1)


def test_cascade_averages_logits_and_scales_deltas_as_mmdetection(cascade, device):
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(40, 2, generator=generator) * torch.tensor([250.0, 190.0])
    boxes = torch.cat([corners, corners + 20 + 40 * torch.rand(40, 2, generator=generator)], dim=1)
    boxes = boxes.to(device)
    proposals = Instances((256, 320), proposal_boxes=Boxes(boxes))
    heads = cascade.model.roi_heads
    with torch.no_grad():
        found = heads._forward_box(cascade.features, [proposals])[0]
        expected_boxes, scores = cascade_by_hand(cascade, boxes)
    rows, classes = (scores[:, :-1] > 0.05).nonzero(as_tuple=True)
    kept = batched_nms(expected_boxes[rows], scores[rows, classes], classes, 0.5)[:100]
    assert len(kept) > 20
    assert torch.equal(found.pred_classes, classes[kept])
    assert torch.allclose(found.scores, scores[rows, classes][kept], atol=tolerance(device)["atol"])
    assert torch.allclose(found.pred_boxes.tensor, expected_boxes[rows][kept], atol=1e-3)


def test_cascade_averages_the_masks_of_three_heads(cascade, device):
    boxes = cascade.reference()["boxes"]
    small = (np.diff(boxes.reshape(-1, 2, 2), axis=1)[:, 0] < 70).all(axis=1)  # of p2 all
    boxes = torch.from_numpy(boxes[small])[:8].to(device)
    classes = torch.arange(len(boxes), device=device)
    instances = Instances((256, 320), pred_boxes=Boxes(boxes), pred_classes=classes)
    with torch.no_grad():
        cascade.model.roi_heads.forward_with_given_boxes(cascade.features, [instances])
    pooled = roi_align(cascade.features["p2"], [boxes], 14, 1 / 4, -1, aligned=True)
    masks = []
    for stage in range(3):
        prefix = f"roi_head.mask_head.{stage}."
        layers = {k[len(prefix) :]: w for k, w in cascade.weights.items() if k.startswith(prefix)}
        x = pooled
        for i in range(4):
            w, b = (layers[f"convs.{i}.conv.{p}"] for p in ("weight", "bias"))
            x = F.relu(F.conv2d(x, w, b, 1, 1))
        x = F.relu(F.conv_transpose2d(x, layers["upsample.weight"], layers["upsample.bias"], 2))
        x = F.conv2d(x, layers["conv_logits.weight"], layers["conv_logits.bias"])
        masks.append(x[classes, classes].sigmoid())
    assert len(boxes) > 3
    assert torch.allclose(
        instances.pred_masks[:, 0], sum(masks) / 3, atol=tolerance(device)["atol"]
    )


@pytest.fixture
def training_cascade(cascade):
    heads = cascade.model.roi_heads
    heads.train()
    heads.batch_size_per_image = 64
    yield heads
    heads.eval()
    heads.batch_size_per_image = 512
    heads.stage_loss_weights = [1.0, 0.5, 0.25]
    heads.zero_grad()


def make_proposals(count=300, device="cpu"):
    generator = torch.Generator().manual_seed(1)
    corners = torch.rand(count, 2, generator=generator) * torch.tensor([260.0, 200.0])
    boxes = torch.cat([corners, corners + 20 + 60 * torch.rand(count, 2, generator=generator)], 1)
    near = make_targets().gt_boxes.tensor.repeat(20, 1)
    near = near + 4 * torch.randn(near.shape, generator=generator)
    proposals = Instances((256, 320), proposal_boxes=Boxes(torch.cat([near, boxes])))
    proposals.objectness_logits = torch.zeros(len(proposals))
    return proposals.to(device)


def test_every_stage_of_the_cascade_samples_and_trains(
    cascade, training_cascade, monkeypatch, device
):
    heads, sampled = training_cascade, []
    original = heads.label_and_sample_proposals

    def record(proposals, targets):
        result = original(proposals, targets)
        sampled.append((heads.proposal_matcher.thresholds[1], proposals[0], result[0]))
        return result

    monkeypatch.setattr(heads, "label_and_sample_proposals", record)
    targets = make_targets(masks=True, device=device)
    with EventStorage() as storage:
        torch.manual_seed(0)
        _, losses = heads(
            cascade.images, cascade.features, [make_proposals(device=device)], [targets]
        )
    names = [
        f"{name}_stage{i}" for i in range(3) for name in ("loss_cls", "loss_box_reg", "loss_mask")
    ]
    assert sorted(losses) == sorted(names)
    assert [threshold for threshold, _, _ in sampled] == [0.5, 0.6, 0.7]
    assert "stage2/roi_head/num_fg_samples" in storage.latest()
    for stage, (_, given, result) in enumerate(sampled):
        positive = result.gt_classes < 80
        assert len(result) <= 64 and 0 < positive.sum() <= 16
        if stage:  # what the sampled ground truth became is dropped; 64 were sampled before
            assert 60 <= len(given) < 64
    sum(losses.values()).backward()
    for head in (*heads.mask_head, *heads.box_head, *heads.box_predictor):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())

    heads.stage_loss_weights = [2.0, 0.0, 1.0]
    with EventStorage():
        torch.manual_seed(0)
        _, weighted = heads(
            cascade.images, cascade.features, [make_proposals(device=device)], [targets]
        )
    for name, loss in losses.items():
        factor = {"0": 2, "1": 0, "2": 4}[name[-1]]  # published: 1, 0.5, 0.25
        assert weighted[name].item() == pytest.approx(factor * loss.item(), rel=1e-4)


def test_cascade_trains_on_an_image_without_objects(cascade, training_cascade, device):
    targets = make_targets(masks=True, device=device)[:0]
    with EventStorage():
        _, losses = training_cascade(
            cascade.images, cascade.features, [make_proposals(50, device)], [targets]
        )
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(losses[f"loss_mask_stage{i}"] == 0 for i in range(3))


def test_cascade_needs_a_weight_for_each_stage():
    with pytest.raises(UserError, match="STAGE_LOSS_WEIGHTS"):
        build("cascade_mask_rcnn", "MODEL.ROI_BOX_CASCADE_HEAD.STAGE_LOSS_WEIGHTS", [1.0, 0.5])
