"""The pictures of a run, from metrics and a model of which the content is known."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from matplotlib.colors import same_color
from matplotlib.figure import Figure

from rsb_d2 import add_rsb_config
from rsb_d2.engine.pictures import curves, draw_curves, draw_detections, read_metrics


@pytest.fixture(autouse=True)
def drawn_as_for_a_user(monkeypatch):
    monkeypatch.setattr(curves, "Figure", Figure)


def write_metrics(folder, lines):
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_of_an_iteration_that_was_run_again_the_last_value_counts(tmp_path):
    lines = [
        {"iteration": 19, "total_loss": 2.0, "lr": 0.1},
        {"iteration": 39, "total_loss": 1.0},
        {"iteration": 39, "total_loss": 1.5, "bbox/AP": 10.0},
    ]
    write_metrics(tmp_path, lines)
    assert read_metrics(str(tmp_path)) == {
        "total_loss": {19: 2.0, 39: 1.5},
        "lr": {19: 0.1},
        "bbox/AP": {39: 10.0},
    }


def test_curves_show_losses_rate_and_ap(tmp_path):
    write_metrics(tmp_path, [{"iteration": i, "lr": 0.1, "total_loss": 3 - i} for i in (0, 1, 2)])
    plain = cv2.imread(draw_curves(str(tmp_path)))
    write_metrics(
        tmp_path,
        [{"iteration": i, "lr": 0.1, "total_loss": 3 - i, "bbox/AP": 30 * i} for i in (0, 1, 2)],
    )
    with_ap = cv2.imread(draw_curves(str(tmp_path)))
    third = plain.shape[1] * 2 // 3
    assert plain.shape == with_ap.shape == (400, 1500, 3)
    assert (plain[:, third:] != with_ap[:, third:]).any()


class OneBox(torch.nn.Module):
    """Finds one box of class 0, the same in each image, with a given score."""

    def __init__(self, score):
        super().__init__()
        self.score = score

    def forward(self, inputs):
        instances = Instances((inputs[0]["height"], inputs[0]["width"]))
        instances.pred_boxes = Boxes(torch.tensor([[10.0, 10.0, 60.0, 50.0]]))
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


def test_detections_stand_beside_the_truth(cfg, tmp_path):
    path = str(tmp_path / "detections.png")
    model = OneBox(0.9).train()
    np.random.seed(0)  # of the visualizer's colours
    assert draw_detections(cfg, model, path) == path
    assert model.training  # as it was
    found = cv2.imread(path)
    # Two columns of pairs; images of 80 x 100 and 100 x 80 are drawn four times as large.
    title, margin, side = 28, 8, 400
    assert found.shape == (2 * (side + title + margin) + margin, 2 * (2 * (side + 8) + 8), 3)

    np.random.seed(0)
    draw_detections(cfg, OneBox(0.1), path)
    missed = cv2.imread(path)
    half = found.shape[1] // 4
    assert (found[:436, :half] == missed[:436, :half]).all()  # the first image's truth
    changed = np.argwhere((found[:436, half : 2 * half] != missed[:436, half : 2 * half]).any(-1))
    top, left = changed.min(axis=0)
    bottom, right = changed.max(axis=0)
    # The box (10, 10, 60, 50), four times as large, and its label; in pixels of the grid.
    assert 0 <= left - 4 * 10 <= 16 and abs(right - 4 * 60) <= 120
    assert abs(bottom - (4 * 50 + margin + title)) <= 16 and top >= margin + title


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Draw the curves of metrics; returns for each panel its title and its lines by name."""
    drawn = SimpleNamespace()

    class KeptFigure(Figure):
        def savefig(self, *args, **kwargs):
            drawn.axes = self.axes
            super().savefig(*args, **kwargs)

    monkeypatch.setattr(curves, "Figure", KeptFigure)

    def call(lines, *test_sets):
        write_metrics(tmp_path, lines)
        draw_curves(str(tmp_path), test_sets)
        return [
            (axes.get_ylabel(), {line.get_label(): line for line in axes.lines})
            for axes in drawn.axes
        ]

    return call


def test_validation_losses_are_drawn_with_those_of_training(draw):
    lines = [
        {"iteration": i, "total_loss": 3 - i / 50, "loss_cls": 1.0, "lr": 0.1}
        | ({"val_total_loss": 3.2 - i / 70, "val_loss_cls": 1.1} if i % 40 == 39 else {})
        for i in range(19, 120, 20)
    ]
    (_, drawn), _, _ = draw(lines)
    assert list(drawn["val_total_loss"].get_xdata()) == [39, 79, 119]
    assert same_color(drawn["val_total_loss"].get_color(), drawn["total_loss"].get_color())
    assert drawn["val_total_loss"].get_linestyle() == "--"


def test_names_of_classes_and_data_sets_decide_nothing_in_the_curves(draw):
    of_one = {"bbox/AP": 3.0, "bbox/AP-blossom": 1.0, "bbox/AP-x/AP": 2.0, "ema/bbox/AP": 4.0}
    losses = {"total_loss": 1.0, "val_total_loss": 1.0}
    (_, in_first), _, (title, in_third) = draw([{"iteration": 9, **losses, **of_one}], "loss")
    assert set(in_first) == set(losses) and set(in_third) == {"bbox/AP", "ema/bbox/AP"}
    assert title == "AP (%)" and in_third["ema/bbox/AP"].get_linestyle() == "--"

    names = ("val_loss_PQ", "loss_PQ", "a/loss")
    of_several = {f"{before}{name}/bbox/AP": 5.0 for before in ("", "ema/") for name in names}
    lines = [{"iteration": 9, **losses, **of_several}]
    (_, in_first), _, (title, in_third) = draw(lines, *names)
    assert set(in_first) == set(losses) and set(in_third) == set(of_several)
    assert title == "AP (%)"
    dashed = {name for name, line in in_third.items() if line.get_linestyle() == "--"}
    assert dashed == {name for name in of_several if name.startswith("ema/")}
