"""C4, whose ROI heads contain timm's last stage, and dilated DC5: features equal to timm's."""

import pytest
import timm
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import Res5ROIHeads

from rsb_d2 import Checkpointer, TimmBackbone, UserError, optimize_for_inference
from rsb_d2.checkpoint.convert import convert
from rsb_d2.modeling import TimmLastStage
from rsb_d2.modeling.spec import backbone_spec, check_heads
from tests.helpers.devices import check_same, tolerance
from tests.helpers.fake_hub import add_to_cache, make_weights
from tests.helpers.small_detector import make_config
from tests.helpers.zoo_model import FEW, make_inputs

PATH = "timm://resnet18.a1_in1k"


@pytest.fixture(scope="module")
def weights():
    return make_weights("resnet18")


@pytest.fixture
def hub(tmp_path, monkeypatch, weights):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "fvcore"))
    add_to_cache(tmp_path / "hub", "resnet18.a1_in1k", weights)


def c4_config(name="resnet18", mask_on=True, device="cpu", **timm_keys):
    cfg = make_config(name, **timm_keys)
    cfg.merge_from_list(FEW)
    cfg.MODEL.DEVICE = device
    cfg.MODEL.BACKBONE.NAME = "build_timm_c4_backbone"
    cfg.MODEL.RPN.IN_FEATURES = cfg.MODEL.ROI_HEADS.IN_FEATURES = ["res4"]
    cfg.MODEL.ROI_HEADS.NAME = "TimmRes5ROIHeads"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 0
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32, 64]]
    cfg.MODEL.MASK_ON = mask_on
    return cfg


def make_c4(*args, **kwargs):
    torch.manual_seed(0)
    return build_model(c4_config(*args, **kwargs)).eval()


def timm_features(name, weights, image, **kwargs):
    """timm's own feature net with the same weights."""
    net = timm.create_model(name, features_only=True, **kwargs).eval()
    net.load_state_dict({k: v for k, v in weights.items() if k in net.state_dict()})
    with torch.no_grad():
        return net.to(image.device)(image)


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_features_of_c4_equal_timms(hub, weights, norm, device):
    model = make_c4(NORM=norm, device=device)
    checkpointer = Checkpointer(model)
    checkpointer.load(PATH)
    image = torch.randn(2, 3, 64, 96).to(device)
    expected = timm_features("resnet18", weights, image)
    with torch.no_grad():
        res4 = model.backbone(image)["res4"]
        res5 = model.roi_heads.res5(res4)
    # Detectron2's FrozenBatchNorm2d computes the same in another order.
    for found, feature in ((res4, expected[3]), (res5, expected[4])):
        if norm == "FrozenBN":
            torch.testing.assert_close(found, feature, **tolerance(device))
        else:
            check_same(found, feature)
    assert list(model.backbone.output_shape()) == ["res4"]
    # Nothing of the network is left as it was, and none of it is built twice.
    names = {n.partition(".body.")[2] for n in checkpointer.report.loaded}
    assert names >= {n for n in weights if not n.startswith("fc.")} - {
        n for n in weights if norm == "FrozenBN" and n.endswith("num_batches_tracked")
    }
    assert not any(".body." in n for n in checkpointer.report.initial)
    assert not any("layer4" in n for n in model.backbone.state_dict())


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "resnetv2_18", "regnetz_005"])
def test_last_stage_of_other_architectures(name, device):
    torch.manual_seed(1)
    whole = TimmBackbone(name, ["res4", "res5"]).eval().to(device)
    stage = TimmLastStage(name).eval().to(device)
    stage.body.load_state_dict(
        {n: t for n, t in whole.body.state_dict().items() if n in stage.body.state_dict()}
    )
    with torch.no_grad():
        features = whole(torch.randn(1, 3, 96, 64).to(device))
        check_same(stage(features["res4"]), features["res5"])


@pytest.mark.parametrize("name", ["efficientnet_b0", "swin_tiny_patch4_window7_224"])
def test_architectures_without_a_separate_last_stage(name):
    says = f"MODEL.TIMM.NAME: '{name}' has no last stage"
    with torch.device("meta"), pytest.raises(UserError, match=says):
        TimmLastStage(name)


def test_weights_move_between_c4_fpn_and_timm(tmp_path, weights):
    c4 = make_c4(NORM="BN")
    Checkpointer(c4, str(tmp_path)).load(save(tmp_path / "timm.pth", weights))
    file = save(tmp_path / "c4.pth", c4.state_dict())
    cfg = make_config("resnet18")
    fpn = build_model(cfg)
    Checkpointer(fpn).load(file)
    for name, tensor in fpn.backbone.bottom_up.body.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    again = make_c4(NORM="BN")
    Checkpointer(again).load(save(tmp_path / "fpn.pth", fpn.state_dict()))
    assert torch.equal(
        again.roi_heads.res5.body.layer4[1].conv2.weight, weights["layer4.1.conv2.weight"]
    )
    # The tool that converts: the whole network, for timm and for Detectron2's own ResNet.
    for target, last in (("timm", "layer4.1.bn2.bias"), ("detectron2", "res5.1.conv2.norm.bias")):
        converted = convert(c4.state_dict(), target).weights
        assert torch.equal(converted[last], weights["layer4.1.bn2.bias"])
        assert sum(not n.endswith("num_batches_tracked") for n in converted) == 100


def save(path, weights):
    torch.save(weights, path)
    return str(path)


@pytest.mark.parametrize(
    "norm, norm_eval, freeze_at, kind, trains, learns",
    [
        ("FrozenBN", True, 2, FrozenBatchNorm2d, True, False),
        ("BN", True, 2, torch.nn.BatchNorm2d, True, False),
        ("BN", False, 2, torch.nn.BatchNorm2d, True, True),
        ("BN", False, 4, torch.nn.BatchNorm2d, True, True),
        ("BN", False, 5, torch.nn.BatchNorm2d, False, False),
        ("SyncBN", False, 2, torch.nn.SyncBatchNorm, True, True),
    ],
)
def test_norm_and_freezing_of_the_last_stage(norm, norm_eval, freeze_at, kind, trains, learns):
    cfg = c4_config(NORM=norm, NORM_EVAL=norm_eval)
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    stage = build_model(cfg).train().roi_heads.res5
    norms = [m for n, m in stage.named_modules() if "bn" in n]
    assert norms and all(type(m) is kind for m in norms)
    assert {p.requires_grad for p in stage.parameters()} == {trains}
    assert {m.training for m in norms if kind is not FrozenBatchNorm2d} in ({learns}, set())


@pytest.mark.parametrize("mask_on", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_optimized_c4(hub, mask_on, device):
    model = make_c4(mask_on=mask_on, NORM="BN", device=device)
    Checkpointer(model).load(PATH)
    inputs = make_inputs(c4_config(mask_on=mask_on), training=False)
    fast = optimize_for_inference(model)
    assert not [m for m in fast.roi_heads.res5.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for expected, found in zip(model(inputs), fast(inputs)):
            expected, found = expected["instances"], found["instances"]
            assert len(expected) == len(found) > 0
            torch.testing.assert_close(
                found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=1e-3, atol=1e-2
            )
            torch.testing.assert_close(found.scores, expected.scores, rtol=1e-3, atol=1e-4)
            if mask_on:
                assert (found.pred_masks != expected.pred_masks).float().mean() < 0.01
        half = optimize_for_inference(model, torch.bfloat16)(inputs)
        assert all(len(r["instances"]) and r["instances"].scores.isfinite().all() for r in half)


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("seresnet50", "resnext50_32x4d")),
    ],
)
def test_features_of_dc5_equal_timms(name, device):
    weights = make_weights(name)
    backbone = TimmBackbone(name, ["res4", "res5"], res5_dilation=2).eval().to(device)
    backbone.body.load_state_dict({n: t for n, t in weights.items() if not n.startswith("fc.")})
    image = torch.randn(1, 3, 64, 96).to(device)
    expected = timm_features(name, weights, image, output_stride=16)
    with torch.no_grad():
        features = backbone(image)
    check_same(features["res4"], expected[3])
    check_same(features["res5"], expected[4])
    assert features["res5"].shape[2:] == (4, 6)
    assert [s.stride for s in backbone.output_shape().values()] == [16, 16]
    assert backbone.size_divisibility == 16


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "vgg16"])
def test_architectures_without_dilation(name):
    says = f"RES5_DILATION: 2: timm's {name} has no dilation"
    with torch.device("meta"), pytest.raises(UserError, match=says):
        TimmBackbone(name, ["res5"], res5_dilation=2)


def test_stock_heads_on_a_timm_backbone_are_refused(caplog):
    cfg = c4_config()
    cfg.MODEL.ROI_HEADS.NAME = "Res5ROIHeads"
    assert type(build_model(cfg).roi_heads) is Res5ROIHeads  # a builder builds what it is told
    with pytest.raises(UserError, match="write MODEL.ROI_HEADS.NAME TimmRes5ROIHeads$"):
        check_heads(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    cfg.MODEL.TIMM.OUT_FEATURES = ["res4"]
    with pytest.raises(UserError, match="random weights; write MODEL.BACKBONE.NAME build_timm_c4"):
        check_heads(cfg)
    cfg.MODEL.ROI_HEADS.NAME = "TimmRes5ROIHeads"
    with pytest.raises(UserError, match="needs MODEL.BACKBONE.NAME build_timm_c4_backbone"):
        check_heads(cfg)
    # The default of that key stands in configs that have no ROI heads, and says nothing there.
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ROI_HEADS.NAME = "ProposalNetwork", "Res5ROIHeads"
    check_heads(cfg)
    assert backbone_spec(cfg).out_features == ["res4"]
