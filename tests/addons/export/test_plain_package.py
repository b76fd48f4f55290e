"""Packages for plain Detectron2: what they detect without this project, and when there is none."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from torch import nn

from rsb_d2.addons.export.plain import export_package
from rsb_d2.addons.export.plain.rounding import without_order
from rsb_d2.addons.export.plain.weights import plain_weights
from rsb_d2.addons.workbench.sample.draw import draw_picture
from rsb_d2.config.loading import load_config
from rsb_d2.data.class_names import ClassNames
from rsb_d2.model_zoo import get_config_file
from rsb_d2.predictor import Predictor
from tests.helpers.models.exporting import NAMES, THRESHOLD, pictures
from tests.helpers.runs.without_rsb_d2 import detect_without_rsb_d2, run_without_rsb_d2
from tests.helpers.seeded_run import (
    CLASSES,
    IDS,
    SMALL,
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


# Of frozen norms and the cascade, the parts that others have as well are slow tests.
SLOW = ["frozen", "cascade"]


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """For each kind its config, its model, its package and what that finds without this project."""
    return make_packages(tmp_path_factory.mktemp("packages"), [k for k in KINDS if k not in SLOW])


@pytest.fixture(scope="module")
def slow_packages(tmp_path_factory):
    return make_packages(tmp_path_factory.mktemp("packages"), SLOW)


def make_packages(folder, kinds):
    made = {}
    for kind in kinds:
        cfg, model = make(kind)
        path = str(folder / kind)
        made[kind] = cfg, model, export_package(cfg, model, NAMES, path, pictures(1))
    bgr = [np.ascontiguousarray(image[:, :, ::-1]) for image in others()]
    found = detect_without_rsb_d2(folder, [folder / kind for kind in kinds], bgr)
    return {kind: (*values, found[str(folder / kind)]) for kind, values in made.items()}


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[pytest.mark.slow] if k in SLOW else []) for k in KINDS]
)
def test_detectron2_alone_detects_the_same(request, kind):
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


def test_the_segmentation_of_a_panoptic_model_is_the_same(tmp_path):
    opts = [*SMALL, *THRESHOLD, "MODEL.SEM_SEG_HEAD.CONVS_DIM", "32"]
    cfg = load_config(get_config_file("panoptic_fpn_rsb_1x"), opts)
    model = make_seeded_model(cfg)
    export_package(cfg, model, NAMES, str(tmp_path / "package"), pictures(1))
    plain = get_cfg()
    plain.merge_from_file(str(tmp_path / "package" / "config.yaml"))
    assert plain.MODEL.META_ARCHITECTURE == "PanopticFPN"


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


def test_sgd_and_what_is_frozen_stay(tmp_path):
    opts = ["SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", "0.0123", "MODEL.BACKBONE.FREEZE_AT", "3"]
    cfg, model = make("faster", *opts)
    export_package(cfg, model, NAMES, str(tmp_path / "package"), pictures(1))
    plain = get_cfg()
    plain.merge_from_file(str(tmp_path / "package" / "config.yaml"))
    assert plain.SOLVER.BASE_LR == 0.0123 and plain.SOLVER.WEIGHT_DECAY == 0.05
    bottom_up = build_model(plain).backbone.bottom_up
    trained = {n.split(".")[0] for n, p in bottom_up.named_parameters() if p.requires_grad}
    assert trained == {"res4", "res5"}


@pytest.mark.slow
def test_the_names_of_the_classes_travel(packages, tmp_path):
    _, _, exported, _ = packages["faster"]
    content = json.loads(Path(exported.folder, "classes.json").read_text())
    assert content["thing_classes"] == CLASSES and content["category_ids"] == IDS
    # As the usage that is printed says, in a process of its own.
    lines = [*exported.usage, "print(predictor.metadata.thing_classes)"]
    lines += ["print(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes)"]
    assert content["metadata"] == [line for line in lines[:-2] if "MetadataCatalog" in line]
    done = run_without_rsb_d2("\n".join(lines), tmp_path)
    assert done.stdout.splitlines()[-2:] == [str(CLASSES)] * 2


@pytest.mark.parametrize(
    "names, kept",
    [("('coco_2017_train',)", False), ("('of_mine_train',)", True), ("()", False)],
)
def test_names_of_data_sets_that_mean_other_classes_go(tmp_path, names, kept):
    cfg, model = make("faster", "DATASETS.TRAIN", names)
    export_package(cfg, model, NAMES, str(tmp_path / "package"), pictures(1))
    plain = get_cfg()
    plain.merge_from_file(str(tmp_path / "package" / "config.yaml"))
    expected = ("of_mine_train",) if kept else ("package_classes",)
    assert plain.DATASETS.TRAIN == plain.DATASETS.TEST == expected


def test_coco_keeps_its_name(tmp_path):
    names = MetadataCatalog.get("coco_2017_val").thing_classes
    opts = ["MODEL.ROI_HEADS.NUM_CLASSES", "80", "DATASETS.TEST", "('coco_2017_val',)"]
    cfg, model = make("faster", *opts, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.02")
    classes = ClassNames(tuple(names), tuple(range(1, 81)))
    exported = export_package(cfg, model, classes, str(tmp_path / "package"), pictures(1))
    for line in exported.metadata:  # Detectron2 knows them, and takes no others
        exec(line, globals())
    assert "coco_2017_val" in exported.metadata[1]


# ---- what is folded, and what is rounding ----


def test_another_eps_of_batch_norm_is_folded_into_its_variance(tmp_path):
    cfg, model = make("faster")
    for module in model.backbone.bottom_up.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.2
    exported = export_package(cfg, model, NAMES, str(tmp_path / "package"), pictures(1))
    assert exported.difference.detections >= 5


def test_the_order_of_the_channels_alone_makes_the_rounding(packages):
    cfg, model, exported, _ = packages["faster"]
    plain = get_cfg()
    plain.merge_from_file(os.path.join(exported.folder, "config.yaml"))
    stock = build_model(plain).eval()
    stock.load_state_dict(plain_weights(model))
    rgb = torch.from_numpy(others()[1]).permute(2, 0, 1)
    with torch.no_grad():
        outputs = [
            m([{"image": image}])[0]["instances"]
            for m, image in ((model, rgb), (stock, rgb.flip(0)))
        ]
        assert not torch.equal(outputs[0].scores, outputs[1].scores)
        with without_order(model, stock):
            outputs = [
                m([{"image": image}])[0]["instances"]
                for m, image in ((model, rgb), (stock, rgb.flip(0)))
            ]
    assert torch.equal(outputs[0].scores, outputs[1].scores)
    assert torch.equal(outputs[0].pred_boxes.tensor, outputs[1].pred_boxes.tensor)


def test_rounding_beyond_the_tolerance_is_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr("rsb_d2.addons.export.plain.same.SCORE_TOLERANCE", 1e-9)
    cfg, model = make("faster")
    exported = export_package(cfg, model, NAMES, str(tmp_path / "package"), pictures(2))
    assert exported.num_rounded == 2 and exported.difference.score <= 1e-9
