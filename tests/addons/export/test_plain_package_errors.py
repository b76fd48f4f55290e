"""When there is no package: the reason in one line, and no folder."""

import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from rsb_d2 import UserError
from rsb_d2.addons.export.plain import export_package, package
from tests.addons.export.test_plain_package import make
from tests.helpers.models.exporting import NAMES, pictures
from tests.helpers.seeded_run import make_seeded_config


@pytest.mark.parametrize(
    "kind, opts, message",
    [
        ("retinanet", [], "P7_RELU is False, as in the published RetinaNet: .* ReLU between"),
        (
            "retinanet",
            ["MODEL.RETINANET.P7_RELU", "True"],
            "OpenMMLabRetinaNet clips boxes to the image before NMS",
        ),
        ("cascade", [], "OpenMMLabCascadeROIHeads averages the logits of its stages"),
        (
            "faster",
            ["MODEL.TIMM.NAME", "seresnet50"],
            "Detectron2 has no backbone like timm's seresnet50, only resnet18, ",
        ),
        ("faster", ["MODEL.TIMM.NAME", "resnet50d"], "no backbone like timm's resnet50d"),
        ("faster", ["MODEL.TIMM.NAME", "resnet10t"], "no backbone like timm's resnet10t"),
        (
            "faster",
            [
                *("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "resnet50"),
                *("MODEL.RPN.IN_FEATURES", "['res4']", "MODEL.ROI_HEADS.IN_FEATURES", "['res4']"),
                *("MODEL.ANCHOR_GENERATOR.SIZES", "[[32, 64]]"),
            ],
            "build_timm_backbone pads images to a multiple of its stride",
        ),
        (
            "faster",
            [
                *("MODEL.TIMM.OUT_FEATURES", "['stem', 'res2', 'res3', 'res4', 'res5']"),
                *("MODEL.FPN.IN_FEATURES", "['stem', 'res2', 'res3', 'res4', 'res5']"),
                *("MODEL.ANCHOR_GENERATOR.SIZES", "[[16], [32], [64], [128], [256]]"),
            ],
            "has stem, which is at stride 2 here and in Detectron2's ResNet at stride 4",
        ),
        (
            "retinanet",
            [
                *("MODEL.TIMM.OUT_FEATURES", "['res2', 'res3', 'res4']"),
                *("MODEL.FPN.IN_FEATURES", "['res2', 'res3', 'res4']"),
                *("MODEL.RETINANET.P7_RELU", "True"),
                *("MODEL.RETINANET.IN_FEATURES", "['p2', 'p3', 'p4', 'p5', 'p6']"),
            ],
            "makes P6 and P7 of res5, and MODEL.FPN.IN_FEATURES ends in res4",
        ),
    ],
)
def test_what_detectron2_has_not_is_refused(tmp_path, kind, opts, message):
    cfg = make_seeded_config(kind, *opts)
    with pytest.raises(UserError, match=message) as e:
        export_package(cfg, build_model(cfg), NAMES, str(tmp_path / "package"), pictures(1))
    assert "\n" not in str(e.value)
    assert not list(tmp_path.iterdir())


def change_channels(weights):
    name = "backbone.bottom_up.stem.conv1.weight"
    return {**weights, name: weights[name].flip(1)}


def change_a_little(weights):
    name = "backbone.fpn_output2.bias"
    return {**weights, name: weights[name] + 1e-4}


def drop_one(weights):
    return {n: t for n, t in weights.items() if n != "backbone.bottom_up.res5.1.conv2.weight"}


@pytest.mark.parametrize(
    "change, message",
    [
        (change_channels, "it differs from the model on an image of 150 x 200: "),
        (change_a_little, "it differs from the model on an image of 150 x 200: "),
        (drop_one, "Detectron2's model has backbone.bottom_up.res5.1.conv2.weight, and "),
    ],
)
def test_a_package_that_differs_is_not_written(tmp_path, monkeypatch, change, message):
    made = package.plain_weights
    monkeypatch.setattr(package, "plain_weights", lambda model: change(made(model)))
    cfg, model = make("faster")
    with pytest.raises(UserError, match=f"was not written: {message}"):
        export_package(cfg, model, NAMES, str(tmp_path / "package"), pictures(1))
    assert not list(tmp_path.iterdir())


def test_a_config_that_detectron2_would_read_otherwise_is_not_written(tmp_path, monkeypatch):
    made = package.plain_config

    def other(*args):
        cfg = made(*args)
        cfg.MODEL.RPN.NMS_THRESH = 0.3
        return cfg

    monkeypatch.setattr(package, "plain_config", other)
    with pytest.raises(UserError, match="was not written"):
        export_package(*make("faster"), NAMES, str(tmp_path / "package"), pictures(1))
    assert not list(tmp_path.iterdir())


def test_without_detections_there_is_nothing_to_compare(tmp_path):
    cfg, model = make("faster", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.0")
    with pytest.raises(UserError, match="nothing is detected in the 1 images .* 1.0 or more"):
        export_package(cfg, model, NAMES, str(tmp_path / "package"), pictures(1))
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_of_an_export_that_is_stopped(tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(package, "save_weights", stop)
    with pytest.raises(KeyboardInterrupt):
        export_package(*make("faster"), NAMES, str(tmp_path / "package"), pictures(1))
    assert not list(tmp_path.iterdir())


# ---- the program ----


def test_the_program_writes_a_package_and_says_how_to_use_it(tool, tmp_path):
    package = tmp_path / "package"
    words = ["--run", "{run}", "--output", f"{package}/", "--format", "detectron2"]
    status, out, err = tool("export", *words)
    assert status == 0, err
    names = sorted(path.name for path in package.iterdir())
    assert names == ["classes.json", "config.yaml", "model_final.pth"]
    assert "compared with the model on 4 images: the same " in out
    assert "MetadataCatalog.get('package_classes').thing_classes = ['circle', " in out
    weights = torch.load(package / "model_final.pth", weights_only=True)
    assert "backbone.bottom_up.stem.conv1.weight" in weights["model"]
    # This project's own programs run it, too, and know the names.
    picture = str(tmp_path / "picture.png")
    Image.fromarray(pictures(1)[0]).save(picture)
    words = ["--run", str(package), "--output", str(tmp_path / "found"), "--threshold", "0.3"]
    status, out, err = tool("predict", *words, picture)
    assert status == 0 and any(f" {name} " in out for name in NAMES.names), err
    # What it wrote is Detectron2's own, and no case for a package.
    again = ["--run", str(package), "--output", f"{package}2", "--format", "detectron2"]
    status, _, err = tool("export", *again)
    assert status == 2 and "build_resnet_fpn_backbone is not of this project" in err[-1]
    assert not (tmp_path / "package2").exists()


@pytest.mark.parametrize(
    "output, message",
    [
        ("model.onnx", "model.onnx is a file's name"),
        ("file", "file is a file"),
        ("full", "full is not empty"),
        ("none/package", "there is no folder "),
    ],
)
def test_where_no_folder_can_be_made(tool, tmp_path, monkeypatch, output, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    # Before the run is looked for.
    words = ["--run", "none", "--output", output, "--format", "detectron2"]
    status, _, err = tool("export", *words)
    assert status == 2 and len(err) == 1 and message in err[0]
