"""Conversions: both models compute the same, round trips give equal bytes, failures no file."""

import pickle
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone

from rsb_d2 import Checkpointer, UserError
from rsb_d2.checkpoint.convert import convert, convert_file
from rsb_d2.checkpoint.files import save_weights
from rsb_d2.checkpoint.loading import complete_model
from rsb_d2.modeling.spec import PLAIN_RESNETS
from tests.helpers.fake_hub import add_to_cache, make_weights
from tests.helpers.runs.programs import call_tool
from tests.helpers.small_detector import make_detector


def make_stock_fpn(name, norm="FrozenBN"):
    """Detectron2's build_resnet_fpn_backbone as tools/convert_weights.py says to configure it."""
    shape = PLAIN_RESNETS[name]
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.DEPTH = shape.depth
    cfg.MODEL.RESNETS.NUM_GROUPS = shape.num_groups
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = shape.width_per_group
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = shape.res2_out_channels
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.NORM = norm
    cfg.MODEL.BACKBONE.FREEZE_AT = 0  # a frozen stage has FrozenBN whatever the norm is
    with torch.device("meta"):  # initial values take longer than all that is tested
        model = torch.nn.ModuleDict({"backbone": build_backbone(cfg)}).eval()
    model = model.to_empty(device="cpu")
    for tensor in model.state_dict().values():  # what was in the memory may be NaN
        tensor.zero_()
    return model


@torch.no_grad()
def check_same_features(name, weights, bottom_up):
    """timm's whole model and a backbone of Detectron2 compute the same, within 1e-5."""
    with torch.device("meta"):
        model = timm.create_model(name).eval()
    model.load_state_dict(weights, assign=True)
    image = torch.randn(1, 3, 64, 64)
    expected = model.forward_intermediates(image, intermediates_only=True)[1:]
    for stage, feature in zip(("res2", "res3", "res4", "res5"), expected):
        scale = feature.abs().max()
        error = (bottom_up(image)[stage] - feature).abs().max()
        assert feature.std() > 1e-3 * scale and error <= 1e-5 * max(scale, 1), stage


REQUIRED = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d"]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in ("resnet101", "resnet152") else [])
        for name in REQUIRED
    ],
)
def test_timm_to_detectron2(tmp_path, name):
    weights = make_weights(name)
    conversion = convert(weights, "detectron2")
    assert conversion.timm_name == name and conversion.dropped == ["fc.weight", "fc.bias"]
    save_weights(str(tmp_path / "a.pth"), conversion.weights, matching_heuristics=True)
    stock = make_stock_fpn(name)
    DetectionCheckpointer(stock).load(str(tmp_path / "a.pth"))
    check_same_features(name, weights, stock["backbone"].bottom_up)
    back = convert(conversion.weights, "timm")
    assert back.timm_name == name and back.dropped == []
    assert all(weights[n] is tensor for n, tensor in back.weights.items())


@pytest.mark.parametrize(
    "name", ["resnet18", pytest.param("resnext50_32x4d", marks=pytest.mark.slow)]
)
def test_round_trips_give_the_same_bytes(tmp_path, name):
    weights = make_weights(name)
    source, there, back = (str(tmp_path / n) for n in ("a.safetensors", "b.pth", "c.safetensors"))
    safetensors.torch.save_file(weights, source, metadata={"format": "pt"})
    convert_file(source, there, "detectron2")
    convert_file(there, back, "timm")
    # The file that timm's model without its classifier gives.
    del weights["fc.weight"], weights["fc.bias"]
    assert Path(back).read_bytes() == safetensors.torch.save(weights, metadata={"format": "pt"})
    # And once more around: the same bytes in each direction.
    convert_file(back, str(tmp_path / "d.pth"), "detectron2")
    assert (tmp_path / "d.pth").read_bytes() == Path(there).read_bytes()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name.endswith(("32x16d", "32x32d")) else [])
        for name in sorted(set(PLAIN_RESNETS) - set(REQUIRED))
    ],
)
def test_other_plain_resnets_are_recognized_by_their_shapes(name):
    """The features of these would take too long; Detectron2's network has names and shapes."""
    stock = make_stock_fpn(name, norm="BN")["backbone"].bottom_up.state_dict()
    conversion = convert(complete_model(name).state_dict(), "detectron2")
    assert conversion.timm_name == name
    shapes = {n: t.shape for n, t in conversion.weights.items()}
    assert shapes == {n: t.shape for n, t in stock.items()}


def test_detectron2_pickle_to_timm(tmp_path):
    weights = make_weights("resnet18")
    torch.save(weights, tmp_path / "a.pth")
    convert_file(str(tmp_path / "a.pth"), str(tmp_path / "b.pth"), "detectron2")
    content = torch.load(tmp_path / "b.pth", weights_only=True)
    content["model"] = {
        n: t.numpy() for n, t in content["model"].items() if not n.endswith("num_batches_tracked")
    }
    (tmp_path / "b.pkl").write_bytes(pickle.dumps(content))
    output = str(tmp_path / "c.pth")
    convert_file(str(tmp_path / "b.pkl"), output, "timm")
    model = timm.create_model("resnet18", num_classes=0, checkpoint_path=output).eval()
    check_same_features("resnet18", weights, TimmOfDetectron2(model))


class TimmOfDetectron2:
    """timm's whole model with the outputs of a backbone of Detectron2."""

    def __init__(self, model):
        self.model = model

    def __call__(self, image):
        features = self.model.forward_intermediates(image, intermediates_only=True)[1:]
        return dict(zip(("res2", "res3", "res4", "res5"), features))


@pytest.mark.parametrize(
    "norm, ending",
    [
        ("BN", ".safetensors"),
        ("FrozenBN", ".pth"),
        pytest.param("BN", ".pth", marks=pytest.mark.slow),
        pytest.param("FrozenBN", ".safetensors", marks=pytest.mark.slow),
    ],
)
def test_trained_detector_to_timm(tmp_path, norm, ending):
    """A detector's backbone, some steps away from where it started, in timm's own model."""
    detector = make_detector(NORM=norm, NORM_EVAL=False)
    backbone = detector.backbone.bottom_up
    optimizer = torch.optim.SGD(backbone.parameters(), lr=1e-3)
    backbone.train()
    for _ in range(2):
        sum(f.square().mean() for f in backbone(torch.randn(2, 3, 64, 64)).values()).backward()
        optimizer.step()
    backbone.eval()
    Checkpointer(detector, str(tmp_path)).save("model_final")

    output = str(tmp_path / f"out{ending}")
    conversion = convert_file(str(tmp_path / "model_final.pth"), output, "timm")
    assert conversion.timm_name == "resnet18" and conversion.dropped == []
    model = timm.create_model("resnet18", num_classes=0, checkpoint_path=output).eval()
    features = timm.create_model("resnet18", features_only=True, checkpoint_path=output).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        ours = list(backbone(image).values())
        for a, b, c in zip(ours, TimmOfDetectron2(model)(image).values(), features(image)[1:]):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(a, c, rtol=1e-5, atol=1e-5)

    # Back into a detector: the same backbone, and from it the same file.
    other = make_detector(seed=5, NORM=norm)
    Checkpointer(other).load(output)
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(other.backbone.bottom_up.state_dict()[name], tensor)
    Checkpointer(other, str(tmp_path)).save("again")
    again = str(tmp_path / f"out_again{ending}")
    convert_file(str(tmp_path / "again.pth"), again, "timm")
    assert Path(again).read_bytes() == Path(output).read_bytes()


@pytest.mark.parametrize(
    "name", [pytest.param("seresnet50", marks=pytest.mark.slow), "test_resnet"]
)
def test_other_architectures_go_to_timm_by_their_name(tmp_path, name):
    detector = make_detector(name)
    torch.save({"model": detector.state_dict()}, tmp_path / "a.pth")
    source, output = str(tmp_path / "a.pth"), str(tmp_path / "b.safetensors")
    with pytest.raises(UserError, match="give timm's name of it with --name"):
        convert_file(source, output, "timm")
    convert_file(source, output, "timm", name)
    model = timm.create_model(name, num_classes=0, checkpoint_path=output).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.forward_intermediates(image, intermediates_only=True)[-1]
        found = detector.backbone.bottom_up(image)["res5"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "target", "timm_name", "words"),
    [
        ("seresnet50", "detectron2", "", "not a backbone that Detectron2 has"),
        ("test_convnext", "detectron2", "", "not a backbone that Detectron2 has"),
        ("seresnet50", "detectron2", "seresnet50", "no counterpart in Detectron2"),
        ("resnet18", "detectron2", "resnetaa50", "no counterpart in Detectron2"),
        ("resnet18", "detectron2", "resnet34", "tensors of timm's resnet34 are not in it"),
        ("resnet34", "timm", "resnet18", "are not of timm's resnet18"),
        ("resnet50", "timm", "wide_resnet50_2", "have another shape"),
        ("resnet18", "timm", "resnet17", "timm has no model 'resnet17'"),
    ],
)
def test_refused_conversions(tmp_path, name, target, timm_name, words):
    torch.save(make_weights(name), tmp_path / "a.pth")
    with pytest.raises(UserError) as error:
        convert_file(str(tmp_path / "a.pth"), str(tmp_path / "b.pth"), target, timm_name)
    assert words in str(error.value)
    assert "no counterpart" in words or "no model" in words or "a.pth: " in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


def test_the_input_is_not_overwritten(tmp_path):
    path = tmp_path / "a.pth"
    torch.save(make_weights("resnet18"), path)
    before = path.read_bytes()
    with pytest.raises(UserError, match="is the input"):
        convert_file(str(path), str(path), "timm")
    assert path.read_bytes() == before


def test_the_program(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    weights = make_weights("resnet18")
    add_to_cache(tmp_path / "hub", "resnet18.a1_in1k", weights)
    there, back = tmp_path / "r18.pth", tmp_path / "back.safetensors"
    status, output, _ = call_tool(
        "convert_weights", tmp_path, "timm://resnet18.a1_in1k", there, "--to", "detectron2"
    )
    assert status == 0
    assert "left out: fc.bias, fc.weight" in output
    assert "RESNETS: {DEPTH: 18, NUM_GROUPS: 1, WIDTH_PER_GROUP: 64" in output
    assert "STRIDE_IN_1X1: False" in output and "INPUT.FORMAT: RGB" in output
    stock = make_stock_fpn("resnet18")
    DetectionCheckpointer(stock).load(str(there))
    check_same_features("resnet18", weights, stock["backbone"].bottom_up)

    status, output, _ = call_tool("convert_weights", tmp_path, there, back, "--to", "timm")
    assert status == 0
    assert f'timm.create_model("resnet18", num_classes=0, checkpoint_path="{back}")' in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing.pth", "out.pth", "--to", "timm"], "there is no file nothing.pth"),
        (["nothing.pth", "out.pkl", "--to", "timm"], "must end in .pth or .safetensors"),
        (["timm://convnext_tiny.in12k", "out.pth", "--to", "detectron2"], "no counterpart"),
        (["timm://resnet17.a1_in1k", "out.pth", "--to", "timm"], "did you mean resnet18."),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments, words):
    status, output, error = call_tool("convert_weights", tmp_path, *arguments)
    assert status == 2 and output == ""
    assert words in error and error.count("\n") == 1, error
