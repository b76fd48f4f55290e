"""The published RetinaNet, part by part, beside MMDetection's formulas written out."""

import pytest
import torch
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from tests.helpers.devices import check_same, tolerance
from tests.helpers.weights.openmmlab import Detector, build, make_targets


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
    # Half of each is outside an image of 100 x 100. Of the whole boxes the IoU is 0.43, of what is
    # inside 0.6; and the third is outside altogether.
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
    stock = type(retinanet.model).__mro__[1].inference_single_image(retinanet.model, *arguments)
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
