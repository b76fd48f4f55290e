"""Weights of every format and architecture in a detector: what is loaded, reported and refused."""

import logging

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_backbone, build_model
from timm.models.nfnet import NormFreeNet

from rsb_d2 import Checkpointer, TimmBackbone, UserError
from tests.helpers.fake_hub import add_to_cache, make_weights
from tests.helpers.small_detector import check_features, make_config, make_detector
from tests.helpers.weights.weight_files import (
    FORMATS,
    as_detectron2,
    check_unchanged,
    state_of,
    write_detector,
    write_detectron2_pickle,
)


@pytest.mark.parametrize("kind, norm", [*((k, "BN") for k in FORMATS), ("timm", "FrozenBN")])
def test_every_format_is_recognized_from_its_content(tmp_path, weights, kind, norm):
    write, name = FORMATS[kind]
    path = tmp_path / "weights"  # the name tells nothing
    write(path, weights)
    detector = make_detector(NORM=norm)
    checkpointer = Checkpointer(detector)
    checkpointer.load(str(path))
    check_features(detector, "resnet18", weights)
    assert checkpointer.report.format_name == name
    body = detector.backbone.bottom_up.body.state_dict()
    for key, tensor in body.items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(tensor, weights[key]), key
    if norm == "BN":
        expected = 0 if kind == "Detectron2 pkl" else 1000  # that file has no counters
        assert body["layer1.0.bn1.num_batches_tracked"] == expected
    else:
        assert isinstance(detector.backbone.bottom_up.body.bn1, FrozenBatchNorm2d)


NO_REFERENCE = pytest.mark.skipif(
    not hasattr(NormFreeNet, "forward_intermediates"), reason="needs a newer timm for the reference"
)


# timm keeps these names, prefixes them, or joins their first two levels.
@pytest.mark.parametrize(
    "name",
    [
        *("test_resnet", "test_convnext", "test_efficientnet", "seresnet50"),
        pytest.param("test_nfnet", marks=NO_REFERENCE),
    ],
)
def test_other_architectures_of_timm(tmp_path, name):
    weights = make_weights(name)
    torch.save(weights, tmp_path / "weights.pth")
    backbone = TimmBackbone(name)
    Checkpointer(backbone).load(str(tmp_path / "weights.pth"))
    check_features(backbone, name, weights)


def test_names_of_an_architectures_first_publication(tmp_path):
    """ConvNeXt as its authors published it: timm itself knows how to convert that."""
    weights = make_weights("test_convnext")
    renames = [
        *(("stem.", "downsample_layers.0."), ("head.norm.", "norm."), ("head.fc.", "head.")),
        *((f"stages.{i}.downsample.", f"downsample_layers.{i}.") for i in range(4)),
        *((f".blocks.{i}.", f".{i}.") for i in range(4)),
        *((".conv_dw.", ".dwconv."), (".mlp.fc1.", ".pwconv1."), (".mlp.fc2.", ".pwconv2.")),
    ]
    published = {}
    for name, tensor in weights.items():
        for new, old in renames:
            name = name.replace(new, old, 1) if name.startswith(new) or new[0] == "." else name
        published[name] = tensor
    assert "downsample_layers.0.0.weight" in published and len(published) == len(weights)
    torch.save({"model": published}, tmp_path / "weights.pth")
    backbone = TimmBackbone("test_convnext")
    Checkpointer(backbone).load(str(tmp_path / "weights.pth"))
    check_features(backbone, "test_convnext", weights)


def test_a_model_without_a_timm_backbone_is_loaded_as_detectron2_does(tmp_path, weights):
    write_detectron2_pickle(tmp_path / "r18.pkl", weights)
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    model = torch.nn.ModuleDict({"backbone": build_backbone(cfg)})
    Checkpointer(model).load(str(tmp_path / "r18.pkl"))
    assert torch.equal(model["backbone"].bottom_up.stem.conv1.weight, weights["conv1.weight"])


def test_a_backbone_without_fpn_and_a_wrapped_model(tmp_path, weights):
    torch.save(weights, tmp_path / "weights.pth")
    cfg = make_config()
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    plain = torch.nn.ModuleDict({"backbone": build_backbone(cfg)})
    Checkpointer(plain).load(str(tmp_path / "weights.pth"))
    check_features(plain["backbone"], "resnet18", weights)

    # A detector's file gives its backbone, whatever that is called in the model at hand.
    write_detector(tmp_path / "detector.pth", weights)
    other = torch.nn.ModuleDict({"backbone": build_backbone(cfg)})
    Checkpointer(other).load(str(tmp_path / "detector.pth"))
    check_features(other["backbone"], "resnet18", weights)

    detector = make_detector()
    Checkpointer(torch.nn.DataParallel(detector)).load(str(tmp_path / "weights.pth"))
    check_features(detector, "resnet18", weights)


def drop(weights, *prefixes):
    return {n: t for n, t in weights.items() if not n.startswith(prefixes)}


def expect_error(tmp_path, weights, *words, name="resnet18"):
    """Loading stops with one line that has these words, and the model stays as it was."""
    path = tmp_path / "weights.pth"
    torch.save(weights, path)
    detector = make_detector(name)
    before = state_of(detector)
    with pytest.raises(UserError) as error:
        Checkpointer(detector).load(str(path))
    message = str(error.value)
    assert all(word in message for word in (str(path), *words)), message
    assert "\n" not in message
    check_unchanged(detector, before)


def test_a_missing_tensor_stops_the_run(tmp_path, weights):
    expect_error(
        tmp_path,
        drop(weights, "layer2.0.bn1.running_mean", "layer3.1."),
        "11 of its 120 tensors are not in the file",
        "layer2.0.bn1.running_mean, layer3.1.conv1.weight, layer3.1.bn1.weight, ...",
        "Take weights of resnet18, such as timm://resnet18.",
    )


def test_another_shape_names_both(tmp_path, weights):
    wide = {**weights, "layer1.0.conv1.weight": torch.zeros(64, 4, 3, 3)}
    expect_error(
        tmp_path,
        wide,
        "1 of its 120 tensors have another shape",
        "layer1.0.conv1.weight is (64, 4, 3, 3) in the file and (64, 64, 3, 3) in the model",
    )


def test_a_deeper_network_is_not_taken_for_a_shallower_one(tmp_path):
    """ResNet-34 has every tensor of ResNet-18, in the same shape."""
    expect_error(tmp_path, make_weights("resnet34"), "not of this architecture", "layer1.2.conv1")


def test_weights_that_would_fit_and_compute_something_else_are_refused(tmp_path, weights):
    caffe2 = {"conv1_w": torch.zeros(64, 3, 7, 7), "res2_0_branch2a_w": torch.zeros(64, 64, 1, 1)}
    expect_error(tmp_path, caffe2, "Caffe2", "BGR", "timm://resnet50.a1_in1k")
    stock = {f"backbone.bottom_up.{n}": t for n, t in as_detectron2(weights).items()}
    expect_error(tmp_path, {"model": stock}, "STRIDE_IN_1X1")


def test_a_timm_name_of_another_architecture(tmp_path, weights, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    add_to_cache(tmp_path, "resnet34.a1_in1k", make_weights("resnet34"))
    detector = make_detector()
    before = state_of(detector)
    with pytest.raises(
        UserError, match="of resnet34, but MODEL.TIMM.NAME is resnet18; write MODEL"
    ):
        Checkpointer(detector).load("timm://resnet34.a1_in1k")
    check_unchanged(detector, before)


def test_unknown_names(tmp_path):
    expect_error(
        tmp_path,
        {"encoder.embed.weight": torch.zeros(3, 3)},
        "has none of the 120 tensors of the backbone",
        "OpenMMLab classification model",
    )


@pytest.mark.parametrize(
    ("meta_architecture", "left"),
    [
        (
            "GeneralizedRCNN",
            ["roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"]
            + ["roi_heads.mask_head.predictor"],
        ),
        ("RetinaNet", ["head.cls_score"]),
    ],
)
def test_another_number_of_classes_keeps_all_but_the_classifier(
    tmp_path, caplog, meta_architecture, left
):
    def build(num_classes, seed):
        cfg = make_config(meta_architecture=meta_architecture)
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = num_classes
        torch.manual_seed(seed)
        return build_model(cfg)

    saved, model = build(5, seed=1), build(3, seed=2)
    torch.save({"model": saved.state_dict()}, tmp_path / "model.pth")
    before = state_of(model)
    Checkpointer(model).load(str(tmp_path / "model.pth"))
    expected = saved.state_dict()
    for name, tensor in model.state_dict().items():
        is_left = name.rpartition(".")[0] in left
        assert torch.equal(tensor, before[name] if is_left else expected[name]), name
    (record,) = [r for r in caplog.records if r.name.startswith("rsb_d2")]
    assert record.levelno == logging.WARNING
    assert "the file has 5 classes and the model 3" in record.getMessage()
    assert f"{left[0]}.weight is ({6 if 'roi' in left[0] else 15}, 16" in record.getMessage()
