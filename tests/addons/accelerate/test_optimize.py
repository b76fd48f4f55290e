"""optimize_for_inference compared with the original detector, and the interface of its result."""

import copy
import io

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from rsb_d2 import UserError, optimize_for_inference
from tests.helpers.models.optimized import (
    check_detections,
    make_detector,
    make_images,
    randomise_norms,
)
from tests.helpers.small_detector import make_config


@pytest.mark.parametrize("kind", ["faster", "mask", "cascade", "retinanet"])
def test_detectors_of_this_project(kind, device):
    model = make_detector(kind, device=device)
    fast = optimize_for_inference(nn.DataParallel(model) if kind == "faster" else model)
    # Other sizes after the first call, and images of several sizes at once.
    for images in (
        make_images((96, 128)),
        make_images((130, 70)),
        make_images((64, 96), (100, 60)),
    ):
        expected = model(images)
        assert sum(len(e["instances"]) for e in expected) > 10
        # Three stages of random weights make more of a difference in rounding.
        check_detections(expected, fast(images), score=1e-3 if kind == "cascade" else 1e-4)


def test_the_model_stays_as_it_was(device):
    model = make_detector("mask", device=device).train()
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    types = [type(m) for m in model.modules()]
    requires_grad = [p.requires_grad for p in model.parameters()]
    strides = [p.stride() for p in model.parameters()]
    fast = optimize_for_inference(model)
    with_gradients = make_images((64, 96))
    fast(with_gradients)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    assert modes == [m.training for m in model.modules()]
    assert types == [type(m) for m in model.modules()]
    assert requires_grad == [p.requires_grad for p in model.parameters()]
    assert strides == [p.stride() for p in model.parameters()]
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in fast.parameters()}
    assert not shared


def test_interface_of_the_result(device):
    model = make_detector("faster", device=device)
    fast = optimize_for_inference(model)
    images = make_images((64, 96))
    assert type(fast) is type(model) and fast.device == model.device and not fast.training
    torch.testing.assert_close(
        fast.preprocess_image(images).tensor, model.preprocess_image(images).tensor
    )
    assert fast.backbone.output_shape() == model.backbone.output_shape()
    assert fast.eval() is fast and fast.train(False) is fast
    with pytest.raises(UserError, match="cannot be trained"):
        fast.train()
    assert not any(m.training for m in fast.modules())
    assert optimize_for_inference(fast) is fast
    with pytest.raises(UserError, match="optimized with dtype torch.float32"):
        optimize_for_inference(fast, torch.bfloat16)
    raw = fast.inference(images, do_postprocess=False)
    assert raw[0].has("pred_boxes")
    with torch.enable_grad():
        assert not fast(images)[0]["instances"].scores.requires_grad


def test_copies_of_the_result(device):
    fast = optimize_for_inference(make_detector("mask", device=device))
    images = make_images((64, 96))
    expected = fast(images)
    stored = io.BytesIO()
    torch.save(fast, stored)
    stored.seek(0)
    for again in (copy.deepcopy(fast), torch.load(stored, weights_only=False)):
        check_detections(expected, again(images), score=0, box=0)
        with pytest.raises(UserError, match="cannot be trained"):
            again.train()


def test_no_detections(device):
    model = make_detector("mask", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.0", device=device)
    fast = optimize_for_inference(model)
    instances = fast(make_images((64, 96)))[0]["instances"]
    assert len(instances) == 0 and instances.pred_masks.shape == (0, 64, 96)


def test_non_finite_weights_are_handled_as_in_stock(device):
    model = make_detector("faster", device=device)
    model.roi_heads.box_predictor.bbox_pred.bias[3] = torch.inf
    images = make_images((64, 96))
    check_detections(model(images), optimize_for_inference(model)(images))


class _OtherRPN(nn.Module):
    """A proposal generator that is not known: it computes something of its own."""

    def __init__(self, rpn):
        super().__init__()
        self.rpn = rpn
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images, features, gt_instances=None):
        assert all(f.dtype == torch.float32 for f in features.values())
        return self.rpn(images, {k: f * self.scale for k, f in features.items()}, gt_instances)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unknown_parts_stay_and_get_float32(dtype, device):
    model = make_detector("faster", device=device)
    model.proposal_generator = _OtherRPN(model.proposal_generator).to(device)
    fast = optimize_for_inference(model, dtype)
    images = make_images((64, 96))
    assert {p.dtype for p in fast.proposal_generator.parameters()} == {torch.float32}
    found = fast(images)
    if dtype == torch.float32:
        check_detections(model(images), found)


@pytest.mark.slow
def test_compiled_for_images_of_any_size(device):
    model = make_detector("faster", device=device)
    torch._dynamo.utils.counters.clear()
    fast = optimize_for_inference(model, compile=True)
    for size in [(160, 192), (192, 160), (256, 320), (140, 260)]:
        images = make_images(size)
        check_detections(model(images), fast(images))
    # Backbone and RPN head, at most twice each.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4


def test_mistakes():
    model = make_detector("faster")
    with pytest.raises(UserError, match="float64; write one of torch.float32"):
        optimize_for_inference(model, torch.float64)
    with pytest.raises(UserError, match="Linear has none"):
        optimize_for_inference(nn.Linear(2, 2))
    with pytest.raises(UserError, match="takes a model in torch.float32"):
        optimize_for_inference(model.bfloat16())


def test_backbone_without_fpn(device):
    cfg = make_config("resnet18", device=device)
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    cfg.MODEL.TIMM.OUT_FEATURES = ["res4"]
    cfg.MODEL.RPN.IN_FEATURES = cfg.MODEL.ROI_HEADS.IN_FEATURES = ["res4"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32, 64]]
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    with torch.enable_grad():
        model = build_model(cfg).eval()
    randomise_norms(model)
    images = make_images((96, 128))
    check_detections(model(images), optimize_for_inference(model)(images))
