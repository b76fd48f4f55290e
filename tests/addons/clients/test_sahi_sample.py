"""The sample run, trained: its package without this project, and SAHI's slices of a large image."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, pairwise_iou
from PIL import Image

from rsb_d2.addons.workbench.sample import draw
from rsb_d2.predictor import Predictor, load_predict_config
from tests.helpers.paths import ROOT
from tests.helpers.runs.without_rsb_d2 import detect_without_rsb_d2

AutoDetectionModel = pytest.importorskip("sahi").AutoDetectionModel
get_sliced_prediction = pytest.importorskip("sahi.predict").get_sliced_prediction

SLICE = 160  # pixels, as the pictures of the training have


def draw_large_image(seed=3, rows=3, columns=4):
    """A picture of twelve shapes, in cells of the size of a slice: (480, 640, 3), RGB."""
    rng = np.random.default_rng(seed)
    size = (rows * SLICE, columns * SLICE)
    picture = draw._background(rng, size)
    for i in range(rows * columns):
        row, column = divmod(i, columns)
        centre = np.array([column + 0.5, row + 0.5]) * SLICE + rng.uniform(-40, 40, 2)
        outline = draw._OUTLINES[draw.CLASS_NAMES[i % 4]]
        polygon = (outline * rng.uniform(28, 36) + centre).round(2)
        alpha = draw._smooth_mask(polygon, size)
        shape = draw.Shape(i % 4, polygon, alpha > 0.5, alpha > 0.5)
        paint = draw._paint(rng, size, shape, behind=picture[shape.mask].mean(axis=0))
        picture = picture * (1 - alpha[..., None]) + paint * alpha[..., None]
    return picture.clip(0, 255).round().astype(np.uint8)


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """A folder with the sample run in ``output`` and its package."""
    folder = tmp_path_factory.mktemp("sample")
    for program in (
        ["train_net.py", "--config-file", str(ROOT / "configs" / "frcnn_rsb_sample.yaml")],
        [
            *("tools/export.py", "--run", "output/frcnn_rsb_sample"),
            *("--output", "package", "--format", "detectron2"),
        ],
    ):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", str(ROOT / program[0]), *program[1:]],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def config_of(sample, *opts):
    return load_predict_config(run=str(sample / "output" / "frcnn_rsb_sample"), opts=opts)


@pytest.mark.slow
def test_the_package_detects_the_same(sample):
    paths = sorted(Path(sample, "datasets", "rsb_sample", "val").glob("*.jpg"))[:10]
    images = [np.array(Image.open(path).convert("RGB")) for path in paths]
    bgr = [np.ascontiguousarray(image[:, :, ::-1]) for image in images]
    (found,) = detect_without_rsb_d2(sample, [sample / "package"], bgr).values()
    predictor = Predictor.from_config(config_of(sample))
    for image, detections in zip(images, found):
        (expected,) = predictor([predictor.prepare(image)])
        assert detections["classes"] == expected.pred_classes.tolist()
        assert np.abs(np.array(detections["scores"]) - expected.scores.numpy()).max() < 1e-5
        boxes = expected.pred_boxes.tensor.numpy()
        assert np.abs(np.array(detections["boxes"]) - boxes).max() < 1e-3


@pytest.mark.slow
def test_slices_of_a_large_image_have_the_objects_of_the_whole(sample):
    image = draw_large_image()
    cfg = config_of(sample)
    scale = cfg.INPUT.MIN_SIZE_TEST / SLICE
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = (round(s * scale) for s in image.shape[:2])
    predictor = Predictor.from_config(cfg)
    (whole,) = predictor([predictor.prepare(image)])

    names = json.loads((sample / "package" / "classes.json").read_text())["thing_classes"]
    model = AutoDetectionModel.from_pretrained(
        model_type="detectron2",
        config_path=str(sample / "package" / "config.yaml"),
        model_path=str(sample / "package" / "model_final.pth"),
        category_mapping={str(i): name for i, name in enumerate(names)},
        confidence_threshold=0.5,
        device="cpu",
    )
    options = {"slice_height": SLICE, "slice_width": SLICE, "perform_standard_pred": False}
    overlaps = {"overlap_height_ratio": 0.5, "overlap_width_ratio": 0.5, "verbose": 0}
    # What a slice has cut off may look like something else: the best of overlapping boxes is kept.
    merging = {"postprocess_type": "NMS", "postprocess_class_agnostic": True}
    result = get_sliced_prediction(image, model, **options, **overlaps, **merging)
    found = result.object_prediction_list

    # Sure of one, at least half sure of the other.
    ious = pairwise_iou(
        whole.pred_boxes, Boxes(torch.tensor([o.bbox.to_xyxy() for o in found]).float())
    )
    same = [[names[i] == o.category.name for o in found] for i in whole.pred_classes.tolist()]
    ious *= torch.tensor(same) * (whole.scores > 0.5)[:, None]
    sure = whole.scores > 0.8
    sure_in_slices = torch.tensor([o.score.value > 0.8 for o in found])
    assert sure.sum() == sure_in_slices.sum() >= 10
    assert (ious.max(dim=1).values[sure] > 0.6).all()
    assert (ious.max(dim=0).values[sure_in_slices] > 0.6).all()
