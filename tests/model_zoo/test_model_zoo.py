"""rsb_d2.model_zoo: Detectron2's four functions, and the tables."""

import inspect
import logging
from pathlib import Path

import detectron2.model_zoo
import pytest
import timm
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from timm.models import list_pretrained

from rsb_d2 import UserError, model_zoo
from rsb_d2.config import load_config
from rsb_d2.model_zoo import model_zoo as implementation
from tests.helpers.paths import ROOT


@pytest.mark.parametrize("name", detectron2.model_zoo.__all__)
def test_parameters_are_those_of_detectron2(name):
    def parameters(module):
        signature = inspect.signature(getattr(module, name))
        return [(p.name, p.default) for p in signature.parameters.values()]

    assert parameters(model_zoo) == parameters(detectron2.model_zoo)


def test_get_config():
    path = model_zoo.get_config_file("frcnn_rsb_1x.yaml")
    assert path == model_zoo.get_config_file("frcnn_rsb_1x") and Path(path).is_file()
    cfg = model_zoo.get_config("frcnn_rsb_1x.yaml")
    assert isinstance(cfg, CfgNode) and not cfg.is_frozen()
    assert cfg.MODEL.WEIGHTS == "timm://resnet50.a1_in1k"
    trained = model_zoo.get_config("frcnn_rsb_1x.yaml", trained=True)
    assert trained.MODEL.WEIGHTS == model_zoo.get_checkpoint_url("frcnn_rsb_1x.yaml")
    assert trained.MODEL.WEIGHTS.startswith("https://download.openmmlab.com/mmdetection/v2.0/")


@pytest.mark.parametrize("name", ["a1", "a2", "a3", "sample"])
def test_pretrainings_are_in_their_folder(name):
    path = f"pretrain/resnet50_rsb_{name}.yaml"
    assert model_zoo.get_config_file(path) == str(ROOT / "configs" / path)
    cfg = model_zoo.get_config(path)
    assert cfg.MODEL.META_ARCHITECTURE == "ImageClassifier" and cfg.MODEL.WEIGHTS == ""
    with pytest.raises(UserError, match="no published weights for pretrain/"):
        model_zoo.get_config(path, trained=True)
    with pytest.raises(UserError, match=f"did you mean .*pretrain/resnet50_rsb_{name}"):
        model_zoo.get_config_file(f"pretrain/resnet5_rsb_{name}")


def test_unknown_names():
    # As Detectron2's, and as every mistake of a user here.
    for error in (RuntimeError, UserError):
        with pytest.raises(error, match="did you mean .*frcnn_rsb_1x"):
            model_zoo.get_config_file("frcnn_rsb_2x.yaml")
        with pytest.raises(error, match="no published weights for frcnn_rsb_3x.yaml"):
            model_zoo.get_checkpoint_url("frcnn_rsb_3x.yaml")
        with pytest.raises(error):
            model_zoo.get("frcnn_rsb_3x.yaml", trained=True)


def test_get_gives_a_model_that_runs(monkeypatch, caplog):
    def unreachable(path):
        raise UserError(f"{path}: no network")

    monkeypatch.setattr(implementation, "locate", unreachable)
    with caplog.at_level(logging.WARNING):
        model = model_zoo.get("frcnn_rsb_1x.yaml", device="cpu")
    assert "RANDOM weights" in caplog.text and "no network" in caplog.text
    assert model.training
    image = torch.zeros(3, 64, 96)
    with torch.no_grad():
        assert "instances" in model.eval()([{"image": image}])[0]


def test_each_config_starts_from_weights_of_its_architecture():
    for path in (ROOT / "configs").glob("*.yaml"):
        cfg = load_config(str(path), [])
        if cfg.MODEL.WEIGHTS:
            expected = f"zoo://{path.stem}", f"timm://{cfg.MODEL.TIMM.NAME}."
            assert cfg.MODEL.WEIGHTS.startswith(expected), path


def test_list_has_every_config_and_the_published_ap():
    table = model_zoo.list()
    files = {p.stem for p in (ROOT / "configs").glob("*.yaml") if not p.stem.startswith("Base-")}
    assert {row.name for row in table} == files
    published = {
        row.name: (row.box_ap, row.mask_ap) for row in table if row.box_ap and "rsb" in row.name
    }
    assert published == {
        "frcnn_rsb_1x": (40.8, None),
        "mask_rcnn_rsb_1x": (41.2, 38.2),
        "cascade_mask_rcnn_rsb_1x": (44.8, 39.9),
        "retinanet_rsb_1x": (39.0, None),
    }
    assert [row.name for row in table if row.weights] == [row.name for row in table if row.box_ap]
    lines = str(table).splitlines()
    assert len(lines) == len(table) + 2
    assert "40.8" in lines[2] and not {"nan", "None"} & set(str(table).split())


def test_rsb_weights_are_those_that_timm_says():
    table = model_zoo.rsb_weights()
    expected = [
        name
        for name in list_pretrained()
        if "2110.00476" in str(timm.get_pretrained_cfg(name).paper_ids)
    ]
    assert [row.weights for row in table] == [f"timm://{name}" for name in expected]
    if timm.__version__ == "1.0.31":
        assert len(table) == 44 and len({row.architecture for row in table}) == 15
    a1 = next(row for row in table if row.weights == "timm://resnet50.a1_in1k")
    assert (a1.architecture, a1.recipe, a1.params_m) == ("resnet50", "a1", 25.6)
    assert len(str(table).splitlines()) == len(table) + 2


@pytest.mark.parametrize("architecture", sorted({r.architecture for r in model_zoo.rsb_weights()}))
def test_rsb_weights_go_with_the_configs(architecture):
    rows = [r for r in model_zoo.rsb_weights() if r.architecture == architecture]
    for config in ("frcnn_rsb_1x", "retinanet_rsb_1x"):
        cfg = model_zoo.get_config(config)
        cfg.MODEL.TIMM.NAME, cfg.MODEL.WEIGHTS = architecture, rows[0].weights
        pixels = [255 * x for x in timm.get_pretrained_cfg(rows[0].weights[7:]).mean]
        with torch.device("meta"):
            if pixels != pytest.approx(cfg.MODEL.PIXEL_MEAN, abs=0.1):
                with pytest.raises(UserError, match="PIXEL_MEAN: \\[127.5"):
                    build_backbone(cfg, ShapeSpec(channels=3))
                cfg.MODEL.PIXEL_MEAN = cfg.MODEL.PIXEL_STD = [127.5, 127.5, 127.5]
            backbone = build_backbone(cfg, ShapeSpec(channels=3))
        assert len(backbone.output_shape()) == 5
