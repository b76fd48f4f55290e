"""optimize_for_inference beside the untouched stock modules, part by part and as a whole."""

import copy
import io

import pytest
import torch
from detectron2 import model_zoo as stock_zoo
from detectron2.config import get_cfg
from detectron2.layers import Conv2d, FrozenBatchNorm2d, ROIAlign, get_norm
from detectron2.modeling import build_model
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from timm.layers import BatchNormAct2d
from torch import nn

from rsb_d2 import TimmBackbone, UserError, optimize_for_inference
from rsb_d2.inference.conv import InferenceConv2d, InferenceLinear, fuse_all, has_fused_kernels
from rsb_d2.inference.fold import can_fold, fold_graph, fold_norm, replace_convs
from rsb_d2.inference.roi_align import ChannelsLastROIPooler, roi_align_channels_last
from rsb_d2.inference.rpn import best
from rsb_d2.modeling.fold_norm import FoldedBatchNorm2d
from tests.helpers.seeded_run import make_seeded_config, make_seeded_model
from tests.helpers.small_detector import make_config

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@torch.enable_grad()
def make_detector(kind, *opts):
    model = make_seeded_model(make_seeded_config(kind, *opts))
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
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
            size = 0.3 if name.endswith(last) else 1.0
            norm.weight.copy_(torch.empty_like(norm.weight).uniform_(0.7 * size, 1.3 * size))
            norm.bias.copy_(torch.empty_like(norm.bias).normal_(0, 0.1))


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


# The parts.


@pytest.mark.parametrize("norm", ["BN", "FrozenBN", "SyncBN", "naiveSyncBN", "GN", ""])
@pytest.mark.parametrize("activation", [nn.ReLU(), torch.nn.functional.relu, nn.GELU(), None])
@pytest.mark.parametrize("is_fused", [False, True])
def test_conv_with_its_norm_and_activation(norm, activation, is_fused):
    conv = Conv2d(
        16, 32, 3, 2, 1, groups=2, bias=not norm, norm=get_norm(norm, 32), activation=activation
    )
    model = nn.ModuleDict({"conv": conv}).eval()
    randomise_norms(model)
    x = torch.randn(2, 16, 13, 9)
    expected = conv(x)
    replace_convs(model, torch.float32)
    if is_fused:
        fuse_all(model)
    found = model["conv"](x)
    assert type(model["conv"]) is InferenceConv2d
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert model["conv"].has_more == (norm == "GN" or isinstance(activation, nn.GELU))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    other = torch.randn_like(expected)
    added = model["conv"].add(x, other.clone(), relu=True, inplace=True)
    torch.testing.assert_close(added, (expected + other).relu(), rtol=1e-5, atol=1e-5)
    assert model["conv"](x[:0]).shape == expected[:0].shape


def test_fold_norm_leaves_the_convolution_as_it_was():
    conv, norm = nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8).eval()
    randomise_norms(nn.Sequential(norm))
    before = copy.deepcopy(conv.state_dict())
    folded = fold_norm(conv, norm)
    x = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(folded(x), norm(conv(x)), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(before[k], v) for k, v in conv.state_dict().items())


def test_a_norm_without_running_statistics_is_not_folded():
    assert not can_fold(nn.BatchNorm2d(4, track_running_stats=False))
    assert not can_fold(None) and not can_fold(nn.GroupNorm(2, 4))
    assert can_fold(FrozenBatchNorm2d(4)) and can_fold(BatchNormAct2d(4))


class _TwoReaders(nn.Module):
    """A convolution whose output goes to a norm and elsewhere, and one that is used twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.twice, self.norm2, self.norm3 = (
            nn.Conv2d(4, 4, 1),
            nn.BatchNorm2d(4),
            nn.BatchNorm2d(4),
        )

    def forward(self, x):
        y = self.conv(x)
        y = y + self.norm(y)
        return self.norm2(self.twice(y)) + self.norm3(self.twice(x))


def test_what_is_read_elsewhere_is_not_folded():
    model = _TwoReaders().eval()
    randomise_norms(model)
    x = torch.randn(1, 4, 3, 3)
    expected = model(x)
    assert fold_graph(model, torch.float32) == 0
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("is_fused", [False, True])
def test_linear(relu, is_fused):
    linear = nn.Linear(30, 20)
    layer = InferenceLinear(linear, relu=relu)
    layer.is_fused = is_fused
    x = torch.randn(7, 30)
    expected = linear(x).relu() if relu else linear(x)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    assert layer(x[:0]).shape == (0, 20)


def make_rois(num, height, width, images=2):
    centre = torch.rand(num, 2) * torch.tensor([width, height])
    size = torch.exp(torch.rand(num, 2) * 5 + 1)
    boxes = torch.cat([centre - size / 2, centre + size / 2], 1)
    boxes[: num // 2].clamp_(0, height)
    boxes[-4] = torch.tensor([0.0, 0.0, width, height])
    boxes[-3, 2:] = boxes[-3, :2]  # no area
    boxes[-2, 2:] = boxes[-2, :2] - 5  # inside out
    boxes[-1] = torch.tensor([-900.0, 5.0, -800.0, 60.0])  # outside
    return torch.cat([torch.randint(0, images, (num, 1)).float(), boxes], 1)


@pytest.mark.parametrize("size", [(7, 7), (14, 14), (3, 5)])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2])
@pytest.mark.parametrize("aligned", [False, True])
def test_roi_align_is_torchvisions(size, sampling_ratio, aligned):
    features = torch.randn(2, 8, 40, 54)
    rois = make_rois(60, 640, 864)
    pooler = ROIAlign(size, 1 / 16, sampling_ratio, aligned)
    expected = pooler(features, rois)
    out = torch.full((61, *size, 8), 7.0)
    features = features.contiguous(memory_format=torch.channels_last)
    rows = torch.randperm(60)
    roi_align_channels_last(features, rois, pooler, out, rows)
    found = out[rows].permute(0, 3, 1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=3e-5)
    assert (out[60] == 7).all()


@pytest.mark.parametrize("scales", [[1 / 4, 1 / 8, 1 / 16, 1 / 32], [1 / 16]])
def test_pooler_is_the_stock_one(scales):
    pooler = ROIPooler(7, scales, 0, "ROIAlignV2")
    features = [torch.randn(2, 8, int(320 * s), int(448 * s)) for s in scales]
    rois = make_rois(80, 320, 448)[:-3]
    boxes = [Boxes(rois[rois[:, 0] == i, 1:]) for i in range(2)]
    empty = [boxes[0], Boxes(torch.zeros(0, 4))]
    none = [Boxes(torch.zeros(0, 4)), Boxes(torch.zeros(0, 4))]
    ours = copy.deepcopy(pooler)
    assert ChannelsLastROIPooler.takes(ours)
    ours.__class__ = ChannelsLastROIPooler
    for box_lists in (boxes, empty, none):
        expected, found = pooler(features, box_lists), ours(features, box_lists)
        assert expected.shape == found.shape
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=3e-5)


def test_best_is_a_stable_sort():
    values = torch.randint(0, 50, (3, 400)).float()  # with many equal ones
    values[1, 7] = -torch.inf
    values[2, 9] = torch.nan
    for num in (1, 60, 399, 400, 500):
        sorted_values, index = values.sort(dim=1, descending=True, stable=True)
        found, found_index = best(values, num)
        torch.testing.assert_close(found, sorted_values[:, :num], rtol=0, atol=0, equal_nan=True)
        assert torch.equal(found_index, index[:, :num])


@pytest.mark.parametrize(
    "name, all_folded",
    [
        *(("resnet18", True), ("resnet26d", True), ("seresnet50", True), ("resnext26ts", True)),
        *(("efficientnet_b0", True), ("regnety_002", True), ("mobilenetv3_small_050", True)),
        *(("hrnet_w18_small", True), ("densenet121", False), ("resnetv2_50d_gn", False)),
        *(("convnext_atto", False), ("swin_tiny_patch4_window7_224", False)),
    ],
)
def test_backbones_of_timm(name, all_folded):
    backbone = TimmBackbone(name, out_features=["res3", "res4", "res5"]).eval()
    randomise_norms(backbone)
    x = torch.randn(1, 3, 96, 64)
    expected = backbone(x)
    cfg_model = nn.Module()
    cfg_model.backbone = backbone
    fast = optimize_for_inference(cfg_model)
    found = fast.backbone(x)
    for feature, values in expected.items():
        scale = values.abs().max().item()
        torch.testing.assert_close(found[feature], values, rtol=1e-4, atol=1e-5 * scale)
    if all_folded:
        assert not any(can_fold(m) for m in fast.modules())
    reduced = optimize_for_inference(cfg_model, torch.bfloat16).backbone(x)
    for feature, values in expected.items():
        assert reduced[feature].dtype == torch.bfloat16
        error = (reduced[feature].float() - values).norm() / values.norm()
        assert error < 0.1


def test_a_backbone_from_a_trainer():
    model = nn.Module()
    model.backbone = TimmBackbone("resnet18", ["res2", "res5"], "BN", True, 0)
    randomise_norms(model.backbone)
    model.backbone.fold_norms_in_training()
    model.train()
    fast = optimize_for_inference(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fast.modules())
    assert any(isinstance(m, FoldedBatchNorm2d) for m in model.modules()) and model.training
    x = torch.randn(1, 3, 96, 64)
    expected = model.backbone.eval()(x)
    for feature, values in fast.backbone(x).items():
        torch.testing.assert_close(values, expected[feature], rtol=1e-4, atol=1e-4)


# Whole detectors.


@pytest.mark.parametrize("kind", ["faster", "mask", "cascade", "retinanet"])
def test_detectors_of_this_project(kind):
    model = make_detector(kind)
    fast = optimize_for_inference(model)
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


STOCK = {
    "faster": "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
    "mask": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "cascade": "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
    "retinanet": "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
    "panoptic": "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml",
    "keypoint": "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml",
    "c4": "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml",
}


def make_stock_model(kind, *opts):
    cfg = get_cfg()
    cfg.merge_from_file(stock_zoo.get_config_file(STOCK[kind]))
    cfg.merge_from_list(
        [
            *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.PIXEL_STD", "[57.4, 57.1, 58.4]"),
            *("MODEL.RESNETS.RES2_OUT_CHANNELS", "32", "MODEL.RESNETS.WIDTH_PER_GROUP", "8"),
            *("MODEL.RESNETS.STEM_OUT_CHANNELS", "16", "MODEL.FPN.OUT_CHANNELS", "32"),
            *("MODEL.ROI_BOX_HEAD.FC_DIM", "32", "MODEL.ROI_MASK_HEAD.CONV_DIM", "16"),
            *("MODEL.ROI_HEADS.NUM_CLASSES", "6", "MODEL.RETINANET.NUM_CLASSES", "6"),
            *("MODEL.RPN.POST_NMS_TOPK_TEST", "100", "MODEL.RPN.PRE_NMS_TOPK_TEST", "300"),
            *opts,
        ]
    )
    if kind == "keypoint":
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1
        cfg.MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS = [16]
        cfg.TEST.DETECTIONS_PER_IMAGE = 8
    model = build_model(cfg).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            std = (2 / parameter[0].numel()) ** 0.5
            is_delta = "bbox_pred" in name or "anchor_deltas" in name
            parameter.data.normal_(0, std * (0.03 if is_delta else 0.5 if "cls" in name else 1))
    if kind == "retinanet":
        model.head.cls_score.bias.zero_()
    randomise_norms(model)
    return model


@pytest.mark.parametrize("kind", STOCK)
def test_stock_detectors(kind):
    model = make_stock_model(kind)
    fast = optimize_for_inference(model)
    images = make_images((96, 128), (64, 100))
    expected, found = model(images), fast(images)
    assert sum(len(e["instances"]) for e in expected) > 10
    check_detections(expected, found)
    for a, b in zip(expected, found):
        assert a.keys() == b.keys()
        if "sem_seg" in a:
            torch.testing.assert_close(a["sem_seg"], b["sem_seg"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "opts",
    [
        ["MODEL.FPN.NORM", "BN", "MODEL.FPN.FUSE_TYPE", "avg"],
        ["MODEL.FPN.NORM", "GN", "MODEL.RPN.CONV_DIMS", "[16, 16]"],
        ["MODEL.ROI_BOX_HEAD.NUM_CONV", "1", "MODEL.ROI_BOX_HEAD.NORM", "BN"],
        ["MODEL.ROI_BOX_HEAD.NUM_FC", "0", "MODEL.ROI_BOX_HEAD.NUM_CONV", "1"],
        ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True", "MODEL.ROI_MASK_HEAD.NORM", "BN"],
        ["MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIPool", "MODEL.RESNETS.NORM", "SyncBN"],
    ],
)
def test_options_of_the_stock_detectors(opts):
    model = make_stock_model("mask", *opts)
    images = make_images((96, 128))
    check_detections(model(images), optimize_for_inference(model)(images))


@pytest.mark.parametrize("kind", STOCK)
def test_lower_precision_keeps_boxes_and_scores_in_float32(kind):
    model = make_stock_model(kind)
    fast = optimize_for_inference(model, torch.bfloat16)
    images = make_images((96, 128), (64, 100))
    expected, found = model(images), fast(images)
    for a, b in zip(expected, found):
        a, b = a["instances"], b["instances"]
        assert abs(len(b) - len(a)) <= 0.5 * len(a) + 2
        assert b.scores.dtype == b.pred_boxes.tensor.dtype == torch.float32
        # Random weights make much of a difference in rounding, but not of the best detection.
        if len(a) and len(b):
            assert (a.scores[0] - b.scores[0]).abs() < 0.1
    last = ("logits_and_deltas", "box_predictor")
    dtypes = {p.dtype for n, p in fast.named_parameters() if not any(x in n for x in last)}
    if kind not in ("keypoint", "c4"):  # which have heads that are not known
        assert dtypes == {torch.bfloat16}


def test_the_model_stays_as_it_was():
    model = make_detector("mask").train()
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


def test_interface_of_the_result():
    model = make_detector("faster")
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


def test_copies_of_the_result():
    fast = optimize_for_inference(make_detector("mask"))
    images = make_images((64, 96))
    expected = fast(images)
    stored = io.BytesIO()
    torch.save(fast, stored)
    stored.seek(0)
    for again in (copy.deepcopy(fast), torch.load(stored, weights_only=False)):
        check_detections(expected, again(images), score=0, box=0)
        with pytest.raises(UserError, match="cannot be trained"):
            again.train()


def test_no_detections():
    model = make_detector("mask", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.0")
    fast = optimize_for_inference(model)
    instances = fast(make_images((64, 96)))[0]["instances"]
    assert len(instances) == 0 and instances.pred_masks.shape == (0, 64, 96)


def test_weights_that_are_not_finite_are_dealt_with_as_stock():
    model = make_detector("faster")
    model.roi_heads.box_predictor.bbox_pred.bias[3] = torch.inf
    images = make_images((64, 96))
    check_detections(model(images), optimize_for_inference(model)(images))


def test_a_wrapped_model_is_unwrapped():
    model = make_detector("retinanet")
    fast = optimize_for_inference(nn.DataParallel(model))
    images = make_images((64, 96))
    check_detections(model(images), fast(images))


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
def test_unknown_parts_stay_and_get_float32(dtype):
    model = make_detector("faster")
    model.proposal_generator = _OtherRPN(model.proposal_generator)
    fast = optimize_for_inference(model, dtype)
    images = make_images((64, 96))
    assert {p.dtype for p in fast.proposal_generator.parameters()} == {torch.float32}
    found = fast(images)
    if dtype == torch.float32:
        check_detections(model(images), found)


def test_without_fused_kernels(monkeypatch):
    model = make_detector("mask")
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: False)
    assert not has_fused_kernels(CPU, torch.float32)
    images = make_images((64, 96))
    check_detections(model(images), optimize_for_inference(model)(images))


def test_compile_without_a_compiler_is_the_plain_path(monkeypatch, caplog):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    model = make_detector("faster")
    fast = optimize_for_inference(model, compile=True)
    assert "torch.compile needs a C++ compiler" in caplog.text
    images = make_images((64, 96))
    check_detections(model(images), fast(images))


@pytest.mark.slow
def test_compiled_for_images_of_any_size():
    model = make_detector("faster")
    torch._dynamo.utils.counters.clear()
    fast = optimize_for_inference(model, compile=True)
    for size in [(160, 192), (192, 160), (256, 320), (140, 260)]:
        images = make_images(size)
        check_detections(model(images), fast(images))
    # Backbone and RPN head, at most twice each.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4


def test_what_it_does_not_take():
    model = make_detector("faster")
    with pytest.raises(UserError, match="float64; write one of torch.float32"):
        optimize_for_inference(model, torch.float64)
    with pytest.raises(UserError, match="Linear has none"):
        optimize_for_inference(nn.Linear(2, 2))
    with pytest.raises(UserError, match="takes a model in torch.float32"):
        optimize_for_inference(model.bfloat16())


def test_backbone_without_fpn():
    cfg = make_config("resnet18")
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
