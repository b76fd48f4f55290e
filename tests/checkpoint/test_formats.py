"""Weights of every format and architecture into a detector: what is computed with them."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_backbone

from rsb_d2 import Checkpointer, TimmBackbone
from tests.helpers.fake_hub import make_weights
from tests.helpers.small_detector import check_features, make_detector
from tests.helpers.weights.weight_files import FORMATS, write_detectron2_pickle


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_told_from_its_content(tmp_path, weights, kind, norm):
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


# timm keeps these names, prefixes them, or joins their first two levels.
@pytest.mark.parametrize(
    "name", ["test_resnet", "test_convnext", "test_efficientnet", "test_nfnet", "seresnet50"]
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


def test_half_precision_weights(tmp_path, weights):
    half = {n: t.half() if t.is_floating_point() else t for n, t in weights.items()}
    torch.save(half, tmp_path / "weights.pth")
    detector = make_detector()
    Checkpointer(detector).load(str(tmp_path / "weights.pth"))
    check_features(detector, "resnet18", half)
    assert detector.backbone.bottom_up.body.conv1.weight.dtype == torch.float32


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
