"""The published RetinaNet and Cascade Mask R-CNN compared with MMDetection's formulas."""

import numpy as np
import pytest
import torch
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.nn import functional as F
from torchvision.ops import batched_nms, roi_align

from rsb_d2 import UserError
from tests.helpers.devices import check_same, tolerance
from tests.helpers.weights.openmmlab import Detector, build, make_targets

# ---- RetinaNet ----


@pytest.fixture(scope="module")
def retinanet(tmp_path_factory, device):
    return Detector("retinanet", tmp_path_factory.mktemp("openmmlab"), device)


def test_p7_has_no_relu_before_it(retinanet, device):
    weights, res5 = retinanet.weights, retinanet.res["res5"]

    def conv(x, i):
        prefix = f"neck.fpn_convs.{i}.conv."
        return F.conv2d(x, weights[prefix + "weight"], weights[prefix + "bias"], 2, 1)

    p6 = conv(res5, 3)
    assert (p6 < 0).any()
    check_same(retinanet.features["p6"], p6)
    check_same(retinanet.features["p7"], conv(p6, 4))
    stock = build("retinanet", "MODEL.RETINANET.P7_RELU", True, device=device)
    stock.load_state_dict(retinanet.model.state_dict(), strict=False)
    with torch.no_grad():
        p7 = stock.backbone(retinanet.images.tensor)["p7"]
    assert torch.allclose(p7, conv(p6.relu(), 4), atol=tolerance(device)["atol"])


def mmdetection_cell_anchors(stride):
    """(9, 4), MMDetection's AnchorGenerator: by ratio, then by size."""
    ratios = torch.tensor([0.5, 1.0, 2.0]).sqrt()[:, None]
    scales = torch.tensor([4 * 2 ** (i / 3) for i in range(3)])[None, :]
    w, h = (stride / ratios * scales).flatten(), (stride * ratios * scales).flatten()
    return torch.stack([-w, -h, w, h], dim=1) / 2


def test_each_anchor_has_its_own_logits_and_deltas(retinanet, device):
    weights, features = retinanet.weights, retinanet.features
    order = [3 * ratio + size for size in range(3) for ratio in range(3)]
    anchors = retinanet.model.anchor_generator([features[f"p{i}"] for i in range(3, 8)])
    with torch.no_grad():
        all_logits, all_deltas = retinanet.model.head([features["p5"]] * 5)

    def head(branch, last):
        x = features["p5"]
        for i in range(4):
            prefix = f"bbox_head.{branch}_convs.{i}.conv."
            x = F.relu(F.conv2d(x, weights[prefix + "weight"], weights[prefix + "bias"], 1, 1))
        prefix = f"bbox_head.{last}."
        x = F.conv2d(x, weights[prefix + "weight"], weights[prefix + "bias"], 1, 1)
        return x[0].unflatten(0, (9, -1))

    found = all_logits[0][0].unflatten(0, (9, -1))
    assert torch.allclose(found, head("cls", "retina_cls")[order], atol=tolerance(device)["atol"])
    found = all_deltas[0][0].unflatten(0, (9, -1))
    assert torch.allclose(found, head("reg", "retina_reg")[order], atol=tolerance(device)["atol"])
    for level, stride in enumerate((8, 16, 32, 64, 128)):
        first_cell = anchors[level].tensor[:9].cpu()
        assert torch.allclose(first_cell, mmdetection_cell_anchors(stride)[order], atol=1e-3)


def test_boxes_are_clipped_before_nms(retinanet, device):
    # Half of each of the first two is outside an image of 100 x 100: their IoU is 0.43, and 0.6
    # after clipping. The third is outside completely.
    anchors = Boxes(
        torch.tensor([[-100.0, 10, 50, 60], [-20.0, 10, 50, 60], [-90.0, 0, -10, 20], [0, 0, 1, 1]])
    )
    scores = torch.zeros(4, 80)
    scores[:3, 7] = torch.tensor([0.9, 0.8, 0.7])
    none = [Boxes(torch.zeros(0, 4)), torch.zeros(0, 80), torch.zeros(0, 4)]
    arguments = [[anchors, none[0]], [scores, none[1]], [torch.zeros(4, 4), none[2]]]
    arguments = [[x.to(device) for x in pair] for pair in arguments] + [(100, 100)]
    found = retinanet.model.inference_single_image(*arguments)
    assert found.pred_boxes.tensor.tolist() == [[0, 10, 50, 60]]
    assert found.scores.tolist() == pytest.approx([0.9])
    stock = RetinaNet.inference_single_image(retinanet.model, *arguments)
    assert len(stock) == 3


def test_retinanet_losses_are_divided_by_the_positives_of_the_batch(retinanet, device):
    """Focal loss and L1 of MMDetection's RetinaHead, written out."""
    model = retinanet.model
    features = [retinanet.features[f"p{i}"] for i in range(3, 8)]
    targets = make_targets(device=device)
    with torch.no_grad(), EventStorage():
        logits, deltas = model.head(features)
        for _ in range(2):  # the second batch does not remember the first
            losses = model.forward_training(None, features, [logits, deltas], [targets])
        labels, boxes = model.label_anchors(model.anchor_generator(features), [targets])
    positive = (labels[0] >= 0) & (labels[0] < 80)
    anchors = Boxes.cat(model.anchor_generator(features)).tensor
    flat = [
        [x[0].permute(1, 2, 0).reshape(-1, k) for x in p] for p, k in ((logits, 80), (deltas, 4))
    ]
    x, found_deltas = (torch.cat(p) for p in flat)
    target = torch.zeros_like(x)
    target[positive, labels[0][positive]] = 1
    p = x.sigmoid()
    weight = (0.25 * target + 0.75 * (1 - target)) * (p - target).abs() ** 2
    focal = F.binary_cross_entropy_with_logits(x, target, reduction="none") * weight
    expected = focal[labels[0] >= 0].sum() / positive.sum()
    assert losses["loss_cls"].item() == pytest.approx(expected.item(), rel=1e-4)

    a, b = anchors[positive], boxes[0][positive]
    centre, size = (a[:, :2] + a[:, 2:]) / 2, a[:, 2:] - a[:, :2]
    shift = ((b[:, :2] + b[:, 2:]) / 2 - centre) / size
    scale = ((b[:, 2:] - b[:, :2]) / size).log()
    l1 = (found_deltas[positive] - torch.cat([shift, scale], dim=1)).abs().sum() / positive.sum()
    assert losses["loss_box_reg"].item() == pytest.approx(l1.item(), rel=1e-4)


# ---- Cascade R-CNN ----


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
