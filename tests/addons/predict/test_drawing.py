"""Annotated pictures: the colors and positions of Detectron2's visualizer."""

import numpy as np
import pytest
import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import Boxes, Instances
from detectron2.utils.visualizer import ColorMode, Visualizer

from rsb_d2.addons.predict.drawing import draw_detections
from rsb_d2.visualization import class_colors

NAMES = ["person", "bicycle", "traffic light"]
GRAY = 90


def find(size, boxes, masks=False):
    found = Instances(size)
    found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    found.scores = torch.linspace(0.9, 0.5, len(boxes))
    found.pred_classes = torch.arange(len(boxes)) % len(NAMES)
    if masks:
        ys, xs = np.ogrid[: size[0], : size[1]]
        found.pred_masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(found.pred_masks, boxes):
            mask[round(y0 + 50) : round(y1), round(x0) : round(x1)] = True
    return found


def changed(picture):
    return np.abs(picture.astype(int) - GRAY).max(axis=2) > 20


@pytest.mark.parametrize("masks", [False, True])
def test_same_pixels_as_detectron2(masks):
    image = np.full((400, 500, 3), GRAY, dtype=np.uint8)
    boxes = [[30, 40, 220, 300], [250, 60, 480, 390], [100, 310, 130, 340]]
    found = find((400, 500), boxes, masks)
    ours = draw_detections(image, found, NAMES)
    metadata = Metadata(thing_classes=NAMES, thing_colors=class_colors(3))
    stock = Visualizer(image, metadata, 1.0, ColorMode.SEGMENTATION)
    stock = stock.draw_instance_predictions(found).get_image()
    assert ours.shape == stock.shape and (image == GRAY).all()
    a, b = changed(ours), changed(stock)
    # Lines and letters may differ by a pixel from those of matplotlib.
    assert (a & b).sum() / (a | b).sum() > (0.9 if masks else 0.6)
    if masks:  # translucent, in the color of the class
        inside = ours[200, 120].astype(float)
        color = np.array(class_colors(3)[0], dtype=float)
        np.testing.assert_allclose(inside, 0.6 * color + 0.4 * GRAY, atol=1)
    # Labels are on top: light letters on black.
    corner = ours[41:56, 31:90]
    assert corner.max() > 200 and np.median(corner) < 60


def test_edges_and_no_detections():
    image = np.full((70, 90, 3), GRAY, dtype=np.uint8)
    edges = [[-5, -5, 40, 30], [60, 50, 120, 95], [0, 0, 90, 70], [45, 30, 45, 30]]
    small = draw_detections(image, find((70, 90), edges), NAMES)
    assert min(small.shape[:2]) == 320  # so that labels can be read
    assert changed(small).any()
    empty = find((400, 500), [], masks=True)
    image = np.random.default_rng(0).integers(0, 255, (400, 500, 3), dtype=np.uint8)
    np.testing.assert_array_equal(draw_detections(image, empty, NAMES), image)


def test_holes_of_masks_and_keypoints():
    image = np.full((400, 500, 3), GRAY, dtype=np.uint8)
    found = find((400, 500), [[50, 50, 350, 350]], masks=True)
    found.pred_masks[0, 200:260, 150:250] = False
    found.pred_keypoints = torch.tensor([[[200.0, 230.0, 0.9], [220.0, 210.0, 0.01]]])
    picture = draw_detections(image, found, NAMES)
    assert (picture[250, 240] == GRAY).all() and not (picture[150, 200] == GRAY).all()
    assert picture[230, 200].tolist() == [255, 60, 60] and (picture[210, 220] == GRAY).all()
