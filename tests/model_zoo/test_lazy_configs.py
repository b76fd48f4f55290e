"""The LazyConfigs are their YAML configs, and Detectron2's own script trains them, unchanged."""

import json
import os
import subprocess
import sys
from pathlib import Path

import detectron2
import pytest
import timm
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from omegaconf import OmegaConf

from rsb_d2 import UserError, model_zoo
from rsb_d2.data.mapper import CheckedDatasetMapper
from rsb_d2.solver import build_optimizer
from tests.helpers.data import layouts
from tests.helpers.fake_hub import add_to_cache, make_weights
from tests.helpers.paths import CONFIGS, ROOT
from tests.helpers.weights.standin_weights import make_image

FOLDER = CONFIGS / "lazy"
PAIRS = {
    "faster_rcnn_rsb_1x": "frcnn_rsb_1x",
    "mask_rcnn_rsb_1x": "mask_rcnn_rsb_1x",
    "cascade_mask_rcnn_rsb_1x": "cascade_mask_rcnn_rsb_1x",
}
SMALL = ["model.backbone.bottom_up.name=resnet18.a1_in1k"]


def load(name, *overrides):
    cfg = LazyConfig.load(str(FOLDER / f"{name}.py"))
    return LazyConfig.apply_overrides(cfg, [*SMALL, *overrides])


def stock_config(name):
    cfg = model_zoo.get_config(name)
    cfg.MODEL.TIMM.NAME, cfg.MODEL.DEVICE = "resnet18", "cpu"
    return cfg


@pytest.mark.parametrize(
    "lazy, stock",
    [
        pytest.param(*pair, marks=[pytest.mark.slow] if "cascade" in pair[0] else [])
        for pair in PAIRS.items()
    ],
)
def test_the_model_equals_that_of_the_yaml(lazy, stock):
    cfg = load(lazy)
    torch.manual_seed(0)
    expected = build_model(stock_config(stock))
    found = instantiate(cfg.model)
    found.load_state_dict(expected.state_dict())
    assert [n for n, p in found.named_parameters() if not p.requires_grad] == [
        n for n, p in expected.named_parameters() if not p.requires_grad
    ]
    image = torch.as_tensor(make_image(96, 128).transpose(2, 0, 1).copy())
    record = {"image": image, "height": 96, "width": 128, "instances": make_instances()}
    losses, detections = [], []
    topk = {True: 2000 if "cascade" in lazy else 1000, False: 1000}
    for model in (expected, found):
        torch.manual_seed(1)
        assert model.proposal_generator.post_nms_topk == topk
        model.proposal_generator.post_nms_topk = {True: 50, False: 20}  # for speed
        with EventStorage():
            losses.append({k: v.item() for k, v in model.train()([record]).items()})
        model.eval()
        for predictor in find_predictors(model):
            predictor.test_score_thresh, predictor.test_topk_per_image = 0.0, 10
        with torch.no_grad():
            detections.append(model([record])[0]["instances"])
    assert losses[0] == losses[1] and len(losses[0]) >= 4
    for field in detections[0].get_fields():
        one, other = (d.get(field) for d in detections)
        assert len(one) and torch.equal(*(getattr(x, "tensor", x) for x in (one, other)))


def find_predictors(model):
    predictors = model.roi_heads.box_predictor
    return predictors if isinstance(predictors, torch.nn.ModuleList) else [predictors]


def make_instances():
    instances = Instances((96, 128))
    instances.gt_boxes = Boxes(torch.tensor([[10.0, 10, 60, 70], [50, 20, 120, 90]]))
    instances.gt_classes = torch.tensor([0, 5])
    corners = [[10, 10, 60, 10, 60, 70, 10, 70], [50, 20, 120, 20, 120, 90, 50, 90]]
    instances.gt_masks = PolygonMasks([[torch.tensor(c).double().numpy()] for c in corners])
    return instances


@pytest.mark.parametrize("lazy, stock", PAIRS.items())
def test_recipe_and_data_are_those_of_the_yaml(lazy, stock):
    cfg, expected = load(lazy), stock_config(stock)
    assert cfg.train.max_iter == expected.SOLVER.MAX_ITER
    assert cfg.train.init_checkpoint == "timm://resnet18.a1_in1k"
    assert cfg.dataloader.train.total_batch_size == expected.SOLVER.IMS_PER_BATCH
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
    cfg.optimizer.params.model = model
    optimizers = [instantiate(cfg.optimizer), build_optimizer(expected, model)]

    def of_parameters(optimizer):
        keys = ("lr", "weight_decay", "betas", "eps", "amsgrad")
        return {
            id(p): [str(g[k]) for k in keys] for g in optimizer.param_groups for p in g["params"]
        }

    assert of_parameters(optimizers[0]) == of_parameters(optimizers[1])
    assert type(optimizers[0]) is type(optimizers[1])
    multiplier = instantiate(cfg.lr_multiplier)
    factors = build_lr_scheduler(expected, optimizers[1])._multiplier
    for i in (0, 1, 250, 499, 500, 501, 1000, 59999, 60000, 79999, 80000, 89999):
        assert multiplier(i / 90000) == pytest.approx(factors(i / 90000))

    found, mapper = instantiate(cfg.dataloader.train.mapper), CheckedDatasetMapper(expected, True)
    assert str(found.augmentations) == str(mapper.augmentations).replace("(800,)", "[800]")
    assert found.image_format == mapper.image_format == "RGB"
    assert found.use_instance_mask == mapper.use_instance_mask
    assert instantiate(cfg.dataloader.test.mapper).image_format == "RGB"
    assert OmegaConf.to_container(cfg, resolve=True)  # nothing refers to what is not there


# ---- weights and pixels ----


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_the_stock_checkpointer_loads_all_of_timms_weights(hub):
    weights = make_weights("resnet18.a1_in1k")
    add_to_cache(hub, "resnet18.a1_in1k", weights)
    cfg = load("mask_rcnn_rsb_1x")
    model = instantiate(cfg.model)
    DetectionCheckpointer(model).load(cfg.train.init_checkpoint)
    body = model.backbone.bottom_up.body.state_dict()
    assert len(body) > 100 and all(torch.equal(body[n], weights[n]) for n in body)


@pytest.mark.parametrize("change", ["lacks one", "has one more", "has another shape"])
def test_a_checkpoint_whose_backbone_does_not_fit_is_refused(tmp_path, change):
    cfg = load("faster_rcnn_rsb_1x")
    model = instantiate(cfg.model)
    weights = model.state_dict()
    name = "backbone.bottom_up.body.conv1.weight"
    if change == "lacks one":
        weights.pop(name)
    elif change == "has one more":
        weights["backbone.bottom_up.body.fc.weight"] = torch.zeros(1)
    else:
        weights[name] = torch.zeros(1, 2, 3, 4)
    torch.save({"model": weights}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="do not fit the backbone, timm's resnet18.a1_in1k"):
        DetectionCheckpointer(model).load(str(tmp_path / "w.pth"))
    # Heads are the user's own.
    weights = {n: t for n, t in model.state_dict().items() if n.startswith("backbone.bottom_up")}
    torch.save({"model": weights}, tmp_path / "w.pth")
    DetectionCheckpointer(model).load(str(tmp_path / "w.pth"))


def test_pixels_that_are_not_the_weights_are_refused_when_the_model_is_built():
    bgr = ["model.input_format=BGR", "model.pixel_mean=[103.53,116.28,123.675]"]
    with pytest.raises(UserError, match="write model.input_format=RGB model.pixel_mean=.123.675,"):
        instantiate(load("mask_rcnn_rsb_1x", *bgr).model)
    cfg = load("mask_rcnn_rsb_1x", "model.backbone.bottom_up.name=resnet50_clip.openai")
    with pytest.raises(UserError, match="do not fit timm's resnet50_clip.openai"):
        instantiate(cfg.model)
    assert timm.get_pretrained_cfg("resnet50_clip.openai").mean[0] != 0.485


# ---- the script ----

# Detectron2's main as a checkout has its script next to the package.
SCRIPT = Path(detectron2.__file__).parents[1] / "tools" / "lazyconfig_train_net.py"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lazy")
    layouts.make_coco(folder / "datasets")
    add_to_cache(folder / "hub", "resnet18.a1_in1k", make_weights("resnet18.a1_in1k"))
    return folder


def run_script(project, name, *overrides, eval_only=False):
    script = SCRIPT if SCRIPT.is_file() else ROOT / "tests" / "helpers" / "runs" / "lazy_script.py"
    environment = {
        **os.environ,
        "DETECTRON2_DATASETS": str(project / "datasets"),
        "HF_HUB_CACHE": str(project / "hub"),
        "HF_HUB_OFFLINE": "1",
        "FVCORE_CACHE": str(project / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    predictor = "box_predictors.2" if "cascade" in name else "box_predictor"
    small = [
        *(*SMALL, "train.device=cpu", "dataloader.train.total_batch_size=2"),
        *("train.max_iter=2", "dataloader.train.num_workers=0", "dataloader.test.num_workers=0"),
        "dataloader.train.mapper.augmentations.0.short_edge_length=[64]",
        "dataloader.test.mapper.augmentations.0.short_edge_length=64",
        *("model.proposal_generator.post_nms_topk=[50,20]", "train.eval_period=0"),
        f"train.output_dir={project / name}",
        # What is not trained detects something, too.
        f"model.roi_heads.{predictor}.test_score_thresh=0.0",
        f"model.roi_heads.{predictor}.test_topk_per_image=5",
    ]
    arguments = ["--config-file", str(FOLDER / f"{name}.py"), *(["--eval-only"] * eval_only)]
    return subprocess.run(
        [sys.executable, str(script), *arguments, *small, *overrides],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("faster_rcnn_rsb_1x", "mask_rcnn_rsb_1x", "cascade_mask_rcnn_rsb_1x")
    ],
)
def test_detectron2s_script_trains_and_evaluates(project, name):
    result = run_script(project, name)
    assert result.returncode == 0, result.stderr
    lines = (project / name / "metrics.json").read_text().splitlines()
    assert json.loads(lines[-1])["iteration"] >= 1
    weights = torch.load(project / name / "model_final.pth", weights_only=False)["model"]
    stem = make_weights("resnet18.a1_in1k")["conv1.weight"]
    assert torch.equal(weights["backbone.bottom_up.body.conv1.weight"], stem)  # which is frozen

    checkpoint = f"train.init_checkpoint={project / name / 'model_final.pth'}"
    result = run_script(project, name, checkpoint, eval_only=True)
    assert result.returncode == 0, result.stderr
    assert "OrderedDict" in result.stdout and "'bbox'" in result.stdout
    assert ("'segm'" in result.stdout) == (name != "faster_rcnn_rsb_1x")
