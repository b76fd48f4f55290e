"""NMS, clipping and the RPN that selects before it decodes, compared with Detectron2's."""

import copy

import pytest
import torch
from detectron2.layers import batched_nms
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torchvision.ops import nms

from rsb_d2.modeling.heads import FastRPN, best, clip, shift_groups
from tests.helpers.installed import IS_MAIN
from tests.helpers.small_detector import make_config


@pytest.fixture(scope="module")
def stock():
    from detectron2.modeling import build_model

    cfg = make_config("resnet18")
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN, cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = 60, 40
    torch.manual_seed(0)
    rpn = build_model(cfg).proposal_generator
    assert type(rpn) is RPN
    return rpn


def outputs(rpn, number, dtype, seed=1):
    """Anchors, and logits and deltas of the shapes that the RPN has them in."""
    torch.manual_seed(seed)
    sizes = [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)][: len(rpn.in_features)]
    features = [torch.zeros(number, 1, h, w) for h, w in sizes]
    anchors = rpn.anchor_generator(features)
    logits = [torch.randn(number, len(a)).to(dtype) for a in anchors]
    if dtype == torch.bfloat16 and IS_MAIN:
        # Equal logits, of which bfloat16 has many, are in any order in Detectron2's main.
        codes = torch.randperm(number * sum(map(len, anchors)), dtype=torch.int16) + 15_000
        of_levels = codes.view(dtype).view(number, -1).split([len(a) for a in anchors], dim=1)
        logits = [x.contiguous() for x in of_levels]
    deltas = [torch.randn(number, len(a), 4).to(dtype) for a in anchors]
    return anchors, logits, deltas


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [[(64, 96)], [(64, 96), (50, 70), (60, 30)]])
def test_proposals_equal_the_stock_ones(stock, training, dtype, sizes):
    assert FastRPN.takes(stock)
    ours = FastRPN.from_stock(copy.deepcopy(stock))
    assert vars(ours).keys() == vars(stock).keys()
    anchors, logits, deltas = outputs(stock, len(sizes), dtype)
    for rpn in (stock, ours):
        rpn.train(training)
        rpn.min_box_size = 4.0
    with torch.autocast("cpu", enabled=dtype != torch.float32):
        expected = stock.predict_proposals(anchors, logits, deltas, sizes)
        found = ours.predict_proposals(anchors, logits, deltas, sizes)
    assert [f.image_size for f in found] == sizes
    for a, b in zip(expected, found):
        assert len(a) > 5
        assert torch.equal(a.proposal_boxes.tensor, b.proposal_boxes.tensor)
        assert torch.equal(a.objectness_logits, b.objectness_logits)


def test_non_finite_predictions(stock):
    ours = FastRPN.from_stock(copy.deepcopy(stock))
    anchors, logits, deltas = outputs(stock, 1, torch.float32)
    logits[0][0, 5], deltas[1][0, 3, 1] = torch.inf, torch.nan
    logits[1][0, 3] = 9.0  # so that it is among the best
    sizes = [(64, 96)]
    with pytest.raises(FloatingPointError, match="Training has diverged"):
        ours.train().predict_proposals(anchors, logits, deltas, sizes)
    expected = stock.eval().predict_proposals(anchors, logits, deltas, sizes)[0]
    found = ours.eval().predict_proposals(anchors, logits, deltas, sizes)[0]
    assert torch.equal(expected.proposal_boxes.tensor, found.proposal_boxes.tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loss_type", ["smooth_l1", "giou"])
def test_losses_and_gradients_equal_the_stock_ones(stock, dtype, loss_type):
    anchors, logits, deltas = outputs(stock, 3, dtype)
    objects = []
    for number in (4, 0, 2):
        objects.append(Instances((64, 96), gt_boxes=Boxes(random_boxes(number) / 4 + 10)))
    found = []
    for rpn in (copy.deepcopy(stock), FastRPN.from_stock(copy.deepcopy(stock))):
        rpn.box_reg_loss_type, rpn.loss_weight = loss_type, {"loss_rpn_loc": 0.7}
        torch.manual_seed(2)  # for the anchors that are sampled
        with EventStorage() as storage:
            labels, boxes = rpn.label_and_sample_anchors(anchors, objects)
            leaves = [x.clone().requires_grad_() for x in (*logits, *deltas)]
            levels = len(logits)
            losses = rpn.losses(anchors, leaves[:levels], labels, leaves[levels:], boxes)
        sum(losses.values()).backward()
        metrics = {name: value for name, (value, _) in storage.latest().items()}
        found.append([losses, [x.grad for x in leaves], metrics])
    assert found[0][2]["rpn/num_pos_anchors"] > 1 and found[0][2] == found[1][2]
    assert all(loss > 0 for loss in found[0][0].values())
    torch.testing.assert_close(*(f[:2] for f in found), rtol=0, atol=0)


def random_boxes(number):
    corner = torch.rand(number, 2) * 300 - 20
    return torch.cat([corner, corner + torch.rand(number, 2) * 90], dim=1)


def test_nms_of_shifted_groups_equals_detectron2s():
    boxes, scores = random_boxes(900), torch.rand(900)
    groups = torch.randint(0, 5, (900,))
    expected = batched_nms(boxes, scores, groups, 0.5)
    assert 0 < len(expected) < 900
    assert torch.equal(expected, nms(shift_groups(boxes, groups), scores, 0.5))


def test_clip_equals_detectron2s():
    boxes, expected = random_boxes(100), Boxes(random_boxes(1))
    expected.tensor = boxes.clone()
    expected.clip((150, 200))
    assert torch.equal(clip(boxes, (150, 200)), expected.tensor)
    assert torch.equal(clip(boxes.view(25, 4, 4), (150, 200)), expected.tensor.view(25, 4, 4))
    assert clip(boxes[:0], (150, 200)).shape == (0, 4)


def test_best_is_a_stable_sort(device):
    values = torch.randint(0, 50, (3, 400)).float().to(device)  # with many equal ones
    values[1, 7] = -torch.inf
    values[2, 9] = torch.nan
    for num in (1, 60, 399, 400, 500):
        sorted_values, index = values.sort(dim=1, descending=True, stable=True)
        found, found_index = best(values, num)
        torch.testing.assert_close(found, sorted_values[:, :num], rtol=0, atol=0, equal_nan=True)
        assert torch.equal(found_index, index[:, :num])
