"""After a pretraining: weights for detectors, timm and Detectron2's ResNet; and the pictures."""

import sys

import cv2
import numpy as np
import pytest
import timm
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_resnet_backbone

from rsb_d2 import Checkpointer, Trainer, UserError
from rsb_d2.checkpoint.convert import convert_file
from rsb_d2.config.loading import load_config
from rsb_d2.pretraining import pictures
from tests.helpers.catalogs import catalogs_kept
from tests.helpers.paths import CONFIGS
from tests.helpers.runs.programs import load_tool
from tests.helpers.small_pretraining import CLASSES, make_config, make_objects

DETECTOR = [
    *("MODEL.TIMM.NAME", "resnet18", "MODEL.DEVICE", "cpu", "MODEL.FPN.OUT_CHANNELS", "32"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "32"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_objects(tmp_path_factory.mktemp("objects"))


@pytest.fixture(scope="module")
def cfg(data, tmp_path_factory):
    """The config of a finished pretraining, with its OUTPUT_DIR."""
    with catalogs_kept():
        output = tmp_path_factory.mktemp("run")
        cfg = make_config(data, output, "SOLVER.MAX_ITER", "2", "TEST.EVAL_PERIOD", "2")
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        trainer.train()
        yield cfg


@pytest.fixture(scope="module")
def final(cfg):
    return f"{cfg.OUTPUT_DIR}/model_final.pth"


@pytest.fixture(scope="module")
def weights(final):
    """The weights of the network, by timm's names."""
    model = torch.load(final, weights_only=True)["model"]
    return {name.removeprefix("network."): tensor for name, tensor in model.items()}


@pytest.fixture(scope="module")
def images():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64))).byte()


def normalised(images):
    mean, std = (
        torch.tensor(values).view(3, 1, 1) * 255
        for values in (timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD)
    )
    return (images.float() - mean) / std


def test_a_detector_loads_the_backbone_and_lists_the_classifier(final, weights):
    model = Trainer.build_model(load_config(str(CONFIGS / "frcnn_rsb_sample.yaml"), DETECTOR))
    checkpointer = Checkpointer(model)
    checkpointer.load(final)
    body = model.backbone.bottom_up.body.state_dict()
    assert body.keys() == {name for name in weights if not name.startswith("fc.")}
    assert all(torch.equal(tensor, weights[name]) for name, tensor in body.items())
    assert sorted(checkpointer.report.unused) == ["fc.bias", "fc.weight"]
    assert "fc (2)" in str(checkpointer.report).split("unused in the file")[1]


def test_a_detector_of_another_architecture_refuses_the_backbone(final):
    opts = [*DETECTOR, "MODEL.TIMM.NAME", "resnet34"]
    model = Trainer.build_model(load_config(str(CONFIGS / "frcnn_rsb_sample.yaml"), opts))
    with pytest.raises(UserError, match="does not fit the backbone, timm's resnet34") as e:
        Checkpointer(model).load(final)
    assert len(str(e.value).splitlines()) == 1


@torch.no_grad()
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_timm_gives_the_same_logits(ending, cfg, final, images, tmp_path):
    output = str(tmp_path / f"timm.{ending}")
    conversion = convert_file(final, output, "timm")
    assert (conversion.timm_name, conversion.num_classes) == ("resnet18", len(CLASSES))
    model = timm.create_model("resnet18", num_classes=4, checkpoint_path=output).eval()
    ours = Trainer.build_model(cfg).eval()
    Checkpointer(ours).load(final)
    logits = ours([{"image": image} for image in images])
    assert logits.shape == (2, 4) and logits.std() > 0
    torch.testing.assert_close(logits, model(normalised(images)), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_detectron2s_resnet_gives_the_same_features(final, weights, images, tmp_path):
    output = str(tmp_path / "detectron2.pth")
    convert_file(final, output, "detectron2")
    stock = get_cfg()
    stock.MODEL.DEVICE = "cpu"
    stock.MODEL.RESNETS.DEPTH, stock.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    stock.MODEL.RESNETS.STRIDE_IN_1X1, stock.MODEL.RESNETS.NORM = False, "BN"
    stock.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    backbone = torch.nn.ModuleDict({"backbone": build_resnet_backbone(stock, ShapeSpec(3))}).eval()
    DetectionCheckpointer(backbone).load(output)
    model = timm.create_model("resnet18", num_classes=4).eval()
    model.load_state_dict(weights)
    x = normalised(images)
    features = model.forward_intermediates(x, intermediates_only=True)[1:]
    for name, feature in zip(("res2", "res3", "res4", "res5"), features, strict=True):
        found = backbone["backbone"](x)[name]
        scale = feature.abs().max()
        assert scale > 0 and (found - feature).abs().max() <= 1e-5 * scale, name


# ---- pictures ----


@pytest.fixture
def cells(monkeypatch):
    """The drawn cells: image, text and color."""
    drawn = []
    original = pictures._write_grid
    monkeypatch.setattr(
        pictures, "_write_grid", lambda c, path: (drawn.extend(c), original(c, path))[1]
    )
    return drawn


def test_pictures_of_training_images(cfg, data, tmp_path, cells):
    for name in ("training_images", "predictions", "curves"):
        picture = cv2.imread(f"{cfg.OUTPUT_DIR}/{name}.png")
        assert picture is not None and picture.std() > 10, name
    opts = ("INPUT.CLASSIFIER.MIXUP_ALPHA", "0.0", "INPUT.CLASSIFIER.CUTMIX_ALPHA", "0.0")
    cfg = make_config(data, tmp_path, *opts)
    pictures.draw_training_images(cfg, Trainer.build_model(cfg), str(tmp_path / "a.png"), 8)
    batch = next(iter(Trainer.build_train_loader(cfg)))
    assert len(cells) == len(batch) == 8
    for (picture, text, _), image in zip(cells, batch):
        assert text == image["file_name"].split("/")[-2]  # its folder
        expected = cv2.resize(image["image"].permute(1, 2, 0).numpy(), picture.shape[:2])
        assert np.abs(picture.astype(int) - expected).max() <= 2
    cells.clear()
    cfg = make_config(data, tmp_path, "SEED", "5")  # mixed
    pictures.draw_training_images(cfg, Trainer.build_model(cfg), str(tmp_path / "a.png"), 8)
    shares = [[float(part.split()[-1]) for part in text.split(", ")] for _, text, _ in cells]
    assert all(0.98 <= sum(found) <= 1.02 for found in shares)
    assert any(len(found) == 2 for found in shares)


@torch.no_grad()
def test_pictures_of_predictions(cfg, weights, tmp_path, cells):
    ours = Trainer.build_model(cfg)
    Checkpointer(ours).load(f"{cfg.OUTPUT_DIR}/model_final.pth")
    path = str(tmp_path / "a.png")
    pictures.draw_predictions(cfg, ours, path, num_images=10)
    model = timm.create_model("resnet18", num_classes=4).eval()
    model.load_state_dict(weights)
    batches = Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0])
    batch = [image for images in batches for image in images]
    found = model(normalised(torch.stack([x["image"] for x in batch]))).argmax(1).tolist()
    assert len(cells) == len(batch) == 10
    for (_, text, colour), image, label in zip(cells, batch, found):
        truth, predicted = CLASSES[image["label"]], CLASSES[label]
        assert text == (truth if truth == predicted else f"{predicted}, is {truth}")
        assert (colour == pictures._RIGHT) == (truth == predicted)


# ---- tools for detectors ----


@pytest.mark.parametrize(
    "tool, words",
    [
        ("predict", ["--run", "{run}", "."]),
        ("browse_data", ["--config-file", "{run}/config.yaml"]),
    ],
)
def test_tools_for_detectors_refuse_a_classifier(
    tool, words, cfg, final, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results.json").write_text("[]")
    cv2.imwrite("image.png", np.zeros((9, 9, 3), np.uint8))
    words = [word.format(run=cfg.OUTPUT_DIR) for word in words]
    monkeypatch.setattr(sys, "argv", [tool, *words])
    assert load_tool(tool).main() == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "of an image classifier" in line and "name a detector's config" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.png", "results.json"]
