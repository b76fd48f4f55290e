"""Packages for plain Detectron2: equal detections without this project, and refused models."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from torch import nn

from rsb_d2 import UserError
from rsb_d2.addons.export import package
from rsb_d2.addons.export.package import (
    dataset_names,
    export_package,
)
from rsb_d2.addons.workbench.sample.draw import draw_picture
from rsb_d2.predictor import Predictor
from tests.helpers.models.exporting import NAMES, THRESHOLD, pictures
from tests.helpers.seeded_run import (
    make_seeded_config,
    make_seeded_model,
)

KINDS = {
    "faster": ["faster"],
    "mask": ["mask"],
    "resnext": ["faster", "MODEL.TIMM.NAME", "resnext50_32x4d.a1_in1k"],
    "frozen": ["mask", "MODEL.TIMM.NORM", "FrozenBN", "MODEL.FPN.NORM", "BN"],
    "cascade": ["cascade", "MODEL.ROI_HEADS.NAME", "CascadeROIHeads"],
    "retinanet": [
        *("retinanet", "MODEL.META_ARCHITECTURE", "RetinaNet"),
        *("MODEL.RETINANET.P7_RELU", "True"),
    ],
    "keypoint": [
        *("faster", "MODEL.KEYPOINT_ON", "True", "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "(16,)"),
        *("MODEL.TIMM.NAME", "resnet34"),
    ],
}


def make(kind, *opts):
    """A config and a detector whose every norm layer and residual branch counts."""
    name, *of_kind = KINDS[kind]
    cfg = make_seeded_config(name, *THRESHOLD, *of_kind, *opts)
    model = make_seeded_model(cfg)
    rng = np.random.default_rng(7)
    for name, tensor in model.backbone.bottom_up.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            values = rng.uniform(0.8, 1.2, tensor.shape) - name.endswith("mean")
            tensor.copy_(torch.from_numpy(values))
        elif name.endswith(".weight") and tensor.dim() == 1:  # timm's last of a block is 0 at first
            low = 0.2 if not tensor.any() else 0.8
            tensor.copy_(torch.from_numpy(rng.uniform(low, low + 0.2, tensor.shape)))
    return cfg, model


def others():
    """Images that no package was compared on: (70, 131) of noise, and a drawn one; RGB."""
    noise = np.random.default_rng(5).integers(0, 256, (70, 131, 3), dtype=np.uint8)
    return [noise, draw_picture(np.random.default_rng(9), 240)[0]]


# Slow, because the others have most of their parts.
SLOW = ["faster", "frozen", "cascade", "keypoint"]


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """For each kind its config, its model, its package and what that finds without this project."""
    return make_packages(tmp_path_factory.mktemp("packages"), [k for k in KINDS if k not in SLOW])


@pytest.fixture(scope="module")
def slow_packages(tmp_path_factory):
    return make_packages(tmp_path_factory.mktemp("packages"), SLOW)


# DefaultPredictor on BGR arrays, for each package, in a process that cannot import rsb_d2.
DETECT = """
import json, sys

class NotHere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "rsb_d2":
            raise ModuleNotFoundError("no rsb_d2 here")

sys.meta_path.insert(0, NotHere())
import numpy as np
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor

images, output, *packages = sys.argv[1:]
found = {}
for package in packages:
    cfg = get_cfg()
    cfg.merge_from_file(f"{package}/config.yaml")
    predictor = DefaultPredictor(cfg)
    found[package] = []
    for image in np.load(images).values():
        outputs = predictor(image)["instances"]
        one = {
            "boxes": outputs.pred_boxes.tensor.tolist(),
            "scores": outputs.scores.tolist(),
            "classes": outputs.pred_classes.tolist(),
        }
        if outputs.has("pred_masks"):
            one["mask_areas"] = outputs.pred_masks.sum((1, 2)).tolist()
        if outputs.has("pred_keypoints"):
            one["keypoints"] = outputs.pred_keypoints[:, :, :2].tolist()
        found[package].append(one)
assert not [name for name in sys.modules if name.startswith("rsb_d2")]
json.dump(found, open(output, "w"))
"""


def make_packages(folder, kinds):
    made = {}
    for kind in kinds:
        cfg, model = make(kind)
        path = str(folder / kind)
        made[kind] = cfg, model, export_package(cfg, model, NAMES, path, pictures(1))
    np.savez(folder / "images.npz", *[np.ascontiguousarray(i[:, :, ::-1]) for i in others()])
    files = [str(folder / name) for name in ("images.npz", "found.json", *kinds)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DETECT, *files],
        cwd=folder,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((folder / "found.json").read_text())
    return {kind: (*values, found[str(folder / kind)]) for kind, values in made.items()}


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[pytest.mark.slow] if k in SLOW else []) for k in KINDS]
)
def test_plain_detectron2_detects_the_same(request, kind):
    packages = request.getfixturevalue("slow_packages" if kind in SLOW else "packages")
    cfg, model, exported, found = packages[kind]
    assert exported.difference.detections >= 5
    predictor = Predictor(cfg, model, NAMES)
    total = 0
    for image, detections in zip(others(), found):
        (expected,) = predictor([predictor.prepare(image)])
        assert detections["classes"] == expected.pred_classes.tolist()
        assert np.abs(np.array(detections["scores"]) - expected.scores.numpy()).max() < 1e-5
        boxes = expected.pred_boxes.tensor.numpy()
        assert np.abs(np.array(detections["boxes"]) - boxes).max() < 1e-3
        assert ("mask_areas" in detections) == (kind in ("mask", "frozen", "cascade"))
        if "mask_areas" in detections:
            areas = expected.pred_masks.sum((1, 2)).numpy()
            assert np.abs(np.array(detections["mask_areas"]) - areas).max() <= 2
        if kind == "keypoint":
            keypoints = expected.pred_keypoints[:, :, :2].numpy()
            assert np.abs(np.array(detections["keypoints"]) - keypoints).max() < 1e-3
        total += len(expected)
    assert total >= 20


def test_the_package_is_for_bgr_and_a_resnet_of_detectron2(packages):
    cfg, _, exported, _ = packages["resnext"]
    plain = get_cfg()
    plain.merge_from_file(os.path.join(exported.folder, "config.yaml"))
    assert plain.INPUT.FORMAT == "BGR"
    assert plain.MODEL.PIXEL_MEAN == cfg.MODEL.PIXEL_MEAN[::-1]
    assert plain.MODEL.PIXEL_STD == cfg.MODEL.PIXEL_STD[::-1]
    resnets = plain.MODEL.RESNETS
    assert (resnets.DEPTH, resnets.NUM_GROUPS, resnets.WIDTH_PER_GROUP) == (50, 32, 4)
    assert resnets.STRIDE_IN_1X1 is False and resnets.NORM == "FrozenBN"
    assert plain.MODEL.BACKBONE.NAME == "build_resnet_fpn_backbone"
    assert plain.MODEL.BACKBONE.FREEZE_AT == cfg.MODEL.BACKBONE.FREEZE_AT == 2
    # The published recipe is AdamW's, which Detectron2 does not have.
    assert plain.SOLVER == get_cfg().SOLVER
    assert sorted(os.listdir(exported.folder)) == ["classes.json", "config.yaml", "model_final.pth"]


@pytest.mark.parametrize(
    "names, kept",
    [("('coco_2017_train',)", False), ("('of_mine_train',)", True), ("()", False)],
)
def test_names_of_data_sets_with_other_classes_are_replaced(names, kept):
    cfg = make_seeded_config("faster", "DATASETS.TRAIN", names)
    expected = ("of_mine_train",) if kept else ("own",)
    assert dataset_names(cfg, NAMES, "own") == (expected, expected)


# ---- what is folded, and what is rounding ----


def test_another_eps_of_batch_norm_is_folded_into_its_variance(tmp_path):
    cfg, model = make("faster")
    for module in model.backbone.bottom_up.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.2
    exported = export_package(cfg, model, NAMES, str(tmp_path / "package"), pictures(1))
    assert exported.difference.detections >= 5


@pytest.mark.parametrize(
    "kind", [k if k == "mask" else pytest.param(k, marks=pytest.mark.slow) for k in KINDS]
)
def test_a_difference_in_float32_is_looked_at_in_float64(tmp_path, monkeypatch, kind):
    compare, calls = package.compare_outputs, []

    def differ_at_first(*arguments):
        calls.append(compare(*arguments))
        if len(calls) == 1:
            raise UserError("rounded")
        return calls[-1]

    monkeypatch.setattr(package, "compare_outputs", differ_at_first)
    exported = export_package(*make(kind), NAMES, str(tmp_path / "package"), pictures(1))
    assert exported.num_rounded == 1 and exported.difference.detections >= 5
    in_float32, in_float64 = calls
    assert in_float32.score > 0 and in_float64.score <= in_float32.score / 2
    assert exported.difference.score == in_float64.score


# ---- mistakes ----


WITHOUT_FPN = [
    *("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "resnet50"),
    *("MODEL.RPN.IN_FEATURES", "['res4']", "MODEL.ROI_HEADS.IN_FEATURES", "['res4']"),
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[32, 64]]"),
]
WITH_STEM = [
    *("MODEL.TIMM.OUT_FEATURES", "['stem', 'res2', 'res3', 'res4', 'res5']"),
    *("MODEL.FPN.IN_FEATURES", "['stem', 'res2', 'res3', 'res4', 'res5']"),
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[16], [32], [64], [128], [256]]"),
]
RELU = ["MODEL.RETINANET.P7_RELU", "True"]
WITHOUT_RES5 = [
    *("MODEL.TIMM.OUT_FEATURES", "['res2', 'res3', 'res4']", *RELU),
    *("MODEL.FPN.IN_FEATURES", "['res2', 'res3', 'res4']"),
    *("MODEL.RETINANET.IN_FEATURES", "['p2', 'p3', 'p4', 'p5', 'p6']"),
]


@pytest.mark.parametrize(
    "kind, opts, message",
    [
        ("retinanet", [], "P7_RELU is False, as in the published RetinaNet: .* ReLU between"),
        (
            "retinanet",
            RELU,
            r"OpenMMLabRetinaNet \(the model\) clips boxes to the image before NMS",
        ),
        (
            "cascade",
            [],
            r"OpenMMLabCascadeROIHeads \(roi_heads\) averages the logits of its stages",
        ),
        ("faster", ["MODEL.TIMM.NAME", "seresnet50"], "no backbone like timm's seresnet50, only"),
        ("faster", ["MODEL.TIMM.NAME", "resnet50d"], "no backbone like timm's resnet50d"),
        ("faster", WITHOUT_FPN, "build_timm_backbone pads images to a multiple of its stride"),
        ("faster", WITH_STEM, "has stem, which is at stride 2 here and in .* at stride 4"),
        ("retinanet", WITHOUT_RES5, "makes P6 and P7 of res5, and .*IN_FEATURES ends in res4"),
    ],
)
def test_models_that_detectron2_lacks_are_refused(tmp_path, kind, opts, message):
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


# ---- the program ----
