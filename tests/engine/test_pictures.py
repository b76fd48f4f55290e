"""The pictures of a run, drawn from known metrics and by a model with known detections."""

import json

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from matplotlib.figure import Figure
from PIL import Image

from rsb_d2 import UserError, add_rsb_config
from rsb_d2.engine import pictures
from rsb_d2.engine.pictures import draw_curves, draw_detections, read_metrics


@pytest.fixture(autouse=True)
def full_figures(monkeypatch):
    monkeypatch.setattr(pictures, "Figure", Figure)


# ---- curves ----


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Draw the curves of metrics; returns each panel's title and lines by name."""
    figures = []

    class KeptFigure(Figure):
        def savefig(self, *args, **kwargs):
            figures.append(self)
            super().savefig(*args, **kwargs)

    monkeypatch.setattr(pictures, "Figure", KeptFigure)

    def call(lines, *test_sets):
        (tmp_path / "metrics.json").write_text("".join(json.dumps(li) + "\n" for li in lines))
        picture = cv2.imread(draw_curves(str(tmp_path), test_sets))
        assert picture.shape == (400, 1500, 3)
        axes = figures[-1].axes
        return [(a.get_ylabel(), {li.get_label(): li for li in a.lines}) for a in axes]

    call.figures = figures
    return call


def test_names_of_classes_and_data_sets_are_not_interpreted(draw):
    of_one = {"bbox/AP": 3.0, "bbox/AP-blossom": 1.0, "bbox/AP-x/AP": 2.0, "ema/bbox/AP": 4.0}
    losses = {"total_loss": 1.0, "val_total_loss": 1.0}
    (_, in_first), _, (title, in_third) = draw([{"iteration": 9, **losses, **of_one}], "loss")
    assert set(in_first) == set(losses) and set(in_third) == {"bbox/AP", "ema/bbox/AP"}
    assert title == "AP (%)" and in_third["ema/bbox/AP"].get_linestyle() == "--"

    names = ("_val_loss_PQ", "loss_PQ", "a/loss")
    of_several = {f"{before}{name}/bbox/AP": 5.0 for before in ("", "ema/") for name in names}
    (_, in_first), _, (title, in_third) = draw([{"iteration": 9, **losses, **of_several}], *names)
    assert set(in_first) == set(losses) and set(in_third) == set(of_several)
    assert title == "AP (%)"
    dashed = {name for name, line in in_third.items() if line.get_linestyle() == "--"}
    assert dashed == {name for name in of_several if name.startswith("ema/")}
    # Matplotlib leaves out names with an underscore by default.
    legend = draw.figures[-1].axes[2].get_legend()
    assert {t.get_text() for t in legend.get_texts()} == set(of_several)


def test_unusual_metrics(tmp_path):
    nan, inf = float("nan"), float("inf")
    lines = [
        {"iteration": 19, "total_loss": nan, "lr": 0.1, "bbox/AP": nan, "_val/bbox/AP": nan},
        {"iteration": 39, "total_loss": 1.0, "lr": inf, "bbox/AP-$$": 1.0, "_$_$/bbox/AP": 10.0},
        {"iteration": 39, "total_loss": 1.5},  # again, after a resume
        {"a line without an iteration": 1},
    ]
    text = "\n".join(map(json.dumps, lines))
    # A process was killed while writing; the next one continued in the same line.
    (tmp_path / "metrics.json").write_text(text + '\n{"iteration": 59, "to{"iteration": 59}\n')
    metrics = read_metrics(str(tmp_path))
    assert metrics["total_loss"].keys() == {19, 39} and metrics["total_loss"][39] == 1.5
    assert metrics["_$_$/bbox/AP"] == {39: 10.0}
    assert cv2.imread(draw_curves(str(tmp_path), ["_val", "_$_$"])) is not None


# ---- detections ----


class OneBox(torch.nn.Module):
    """Detects one box of class 0, the same in each image, with a given score."""

    def __init__(self, score):
        super().__init__()
        self.score, self.sizes = score, []

    def forward(self, inputs):
        # At the requested size, as a detector does; the files have 80 pixels and more.
        height, width = inputs[0]["height"], inputs[0]["width"]
        self.sizes.append((height, width))
        instances = Instances((height, width))
        instances.pred_boxes = Boxes(torch.tensor([[10.0, 10.0, 60.0, 50.0]]))
        instances.pred_boxes.scale(min(height, width) / 80, min(height, width) / 80)
        instances.scores = torch.tensor([self.score])
        instances.pred_classes = torch.tensor([0])
        return [{"instances": instances}]


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    add_rsb_config(cfg)
    cfg.INPUT.FORMAT = "RGB"
    name = f"pictures_{tmp_path.name}"
    cfg.DATASETS.TEST = (name,)
    records = []
    for i, (height, width) in enumerate([(80, 100), (100, 80), (80, 100)]):
        path = str(tmp_path / f"{i}.png")
        cv2.imwrite(path, np.full((height, width, 3), 128, np.uint8))
        box = {"bbox": [20, 20, 30, 30], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
        records.append(
            dict(file_name=path, image_id=i, height=height, width=width, annotations=[box])
        )
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).thing_classes = ["thing"]
    yield cfg
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.fixture
def detections(cfg, tmp_path):
    """Draw the detections of a model; returns the picture."""

    def call(model, **kwargs):
        return cv2.imread(draw_detections(cfg, model, str(tmp_path / "detections.png"), **kwargs))

    return call


def change_records(cfg, change):
    name = cfg.DATASETS.TEST[0]
    records = change(DatasetCatalog.get(name))
    DatasetCatalog.remove(name)
    DatasetCatalog.register(name, lambda: records)


def test_detections_next_to_the_truth(detections):
    model = OneBox(0.9).train()
    found = detections(model)
    assert model.training  # as before
    # Two columns of pairs; images of 80 x 100 and 100 x 80 are drawn four times as large.
    title, margin, side = 28, 8, 400
    assert found.shape == (2 * (side + title + margin) + margin, 2 * (2 * (side + 8) + 8), 3)
    missed = detections(OneBox(0.1))
    half = found.shape[1] // 4
    assert (found[:436, :half] == missed[:436, :half]).all()  # the first image's truth
    changed = np.argwhere((found[:436, half : 2 * half] != missed[:436, half : 2 * half]).any(-1))
    top, left = changed.min(axis=0)
    bottom, right = changed.max(axis=0)
    # The box (10, 10, 60, 50), four times as large, and its label; in pixels of the grid.
    assert 0 <= left - 4 * 10 <= 16 and abs(right - 4 * 60) <= 120
    assert abs(bottom - (4 * 50 + margin + title)) <= 16 and top >= margin + title


@pytest.mark.parametrize("size, mode", [((1, 1), "L"), ((1, 5000), "RGBA"), ((3000, 2), "I;16")])
def test_unusual_shapes_modes_and_names(cfg, tmp_path, detections, size, mode):
    path = str(tmp_path / "odd.png")
    Image.new(mode, size[::-1]).save(path)
    box = {"bbox": [0, 0, 1, 1], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    record = dict(file_name=path, image_id=1, height=size[0], width=size[1], annotations=[box])
    change_records(cfg, lambda _: [record])
    MetadataCatalog.remove(cfg.DATASETS.TEST[0])
    MetadataCatalog.get(cfg.DATASETS.TEST[0]).thing_classes = ["$1_$5\n汽车 \udce9"]
    cfg.INPUT.MIN_SIZE_TEST = 0
    assert max(detections(OneBox(0.9)).shape) < 2100


def test_a_data_set_without_images_is_reported(cfg, tmp_path, detections):
    change_records(cfg, lambda _: [])
    with pytest.raises(UserError, match=cfg.DATASETS.TEST[0]):
        detections(OneBox(0.9))
    assert not (tmp_path / "detections.png").exists()
