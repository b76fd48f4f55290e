"""Text in any script, sizes, annotations and grids of the pictures."""

import warnings

import matplotlib
import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import Metadata
from detectron2.structures import BoxMode
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rsb_d2.visualization import (
    drawable,
    drawn_size,
    image_grid,
    make_plain,
)
from rsb_d2.visualizer import PlainVisualizer, resized

FORMULAS = ["$$", "$1_$5", r"$\frac{", "$a_b$", "_hidden", "100 % %s {x}", "<b>", ""]


def draw(texts):
    """Draw a figure with the texts in all places; an error if matplotlib warns."""
    figure = Figure(figsize=(4, 4), layout="constrained")
    axes = figure.subplots()
    figure.suptitle(texts[0])
    for text in texts:
        axes.plot([0, 1], label=text)
        axes.text(0.5, 0.5, text)
    axes.set_xticks(range(len(texts)), map(drawable, texts))
    axes.legend(axes.lines, texts)
    make_plain(figure)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FigureCanvasAgg(figure).draw()
    return figure.axes[0]


def test_text_is_literal():
    with matplotlib.rc_context({"text.parse_math": True}):
        axes = draw(FORMULAS)
    for texts in (axes.texts, axes.get_legend().get_texts(), axes.get_xticklabels()):
        assert [t.get_text() for t in texts] == FORMULAS
    visualizer = PlainVisualizer(np.zeros((60, 80, 3), np.uint8), Metadata())
    visualizer.overlay_instances(boxes=[[10, 10, 40, 40]] * len(FORMULAS), labels=FORMULAS)
    assert visualizer.output.get_image().shape == (60, 80, 3)
    assert {t.get_text() for t in visualizer.output.ax.texts} == set(FORMULAS)


@pytest.mark.parametrize(
    "size, limits, expected",
    [
        ((480, 640), (1000, 1000), (480, 640)),
        ((80, 100), (1000, 1000), (320, 400)),  # enlarged to 320 pixels
        ((3000, 4000), (300, 388), (291, 388)),
        ((1, 5000), (1000, 1000), (16, 1000)),
        ((70000, 3), (300, 388), (300, 16)),
    ],
)
def test_drawn_size(size, limits, expected):
    assert drawn_size(*size, *limits) == expected


RLE = mask_util.encode(np.asfortranarray(np.pad(np.ones((20, 30), np.uint8), [(10, 10), (40, 10)])))


@pytest.mark.parametrize(
    "mask",
    [
        [[40, 10, 70, 10, 70, 30, 40, 30]],
        RLE,
        dict(size=[40, 80], counts=[1610, *[20, 20] * 29, 20, 410]),
        mask_util.decode(RLE).astype(bool),
    ],
    ids=["polygon", "RLE", "uncompressed RLE", "bitmap"],
)
def test_annotations_that_some_objects_lack(mask):
    image = np.zeros((40, 80, 3), np.uint8)
    small = dict(bbox=[0, 0, 8, 4], bbox_mode=BoxMode.XYXY_ABS, category_id=1)
    objects = [
        dict(bbox=[40, 10, 30, 20], bbox_mode=BoxMode.XYWH_ABS, category_id=0, segmentation=mask),
        dict(small, keypoints=[8, 4, 2]),
        dict(small, segmentation=[], keypoints=[2, 4, 2, 0, 0, 0], iscrowd=1),
    ]
    sem_seg = np.arange(40 * 80).reshape(40, 80) // 1600  # 0 above, 1 below
    drawn, got = resized(image, dict(annotations=objects, sem_seg=sem_seg), (20, 40))
    assert drawn.shape == (20, 40, 3) and objects[0]["bbox"] == [40, 10, 30, 20]
    boxes = [a["bbox"].tolist() for a in got["annotations"]]
    assert boxes == [[20, 5, 35, 15], [0, 0, 4, 2], [0, 0, 4, 2]]
    keypoints = [a["keypoints"] for a in got["annotations"]]
    assert keypoints == [[0] * 6, [4, 2, 2, 0, 0, 0], [1, 2, 2, 0, 0, 0]]
    assert (got["sem_seg"] == np.repeat([0, 1], 10)[:, None]).all()
    first, *others = [a["segmentation"] for a in got["annotations"]]
    assert others == [[], []]
    if isinstance(first, list):
        first = mask_util.merge(mask_util.frPyObjects(first, 20, 40))
    expected = np.pad(np.ones((10, 15)), [(5, 5), (20, 5)])
    np.testing.assert_array_equal(mask_util.decode(first), expected)

    metadata = Metadata(thing_classes=["a", "b"], thing_colors=[(250, 0, 0), (0, 250, 0)])
    drawn, got = resized(image, dict(annotations=objects), (400, 800))
    picture = PlainVisualizer(drawn, metadata).draw_dataset_dict(got).get_image()
    assert picture[250, 600].tolist() == pytest.approx([125, 0, 0], abs=2)  # the mask
    assert picture[40, 80, 0] == 255  # the keypoint


def test_grid():
    large, small = np.full((50, 80, 3), 10, np.uint8), np.full((20, 30, 3), 20, np.uint8)
    cells = [(large, "a", (255, 0, 0)), (small, "$x$", (0, 0, 0)), (small, "w" * 500, (0, 0, 0))]
    grid = image_grid(cells, columns=2, margin=6, text_size=10)
    assert grid.shape == (2 * (50 + 20 + 6) + 6, 2 * (80 + 6) + 6, 3)
    assert (grid[26:76, 6:86] == 10).all() and (grid[26:46, 92:122] == 20).all()
    assert (grid[102:122, 6:36] == 20).all() and (grid[:, 86:92] == 255).all()
    caption = grid[6:26, 6:86].astype(int)
    assert caption[..., 1].min() < 60 and caption[..., 0].min() > 240  # red on white
    below = image_grid(cells, columns=2, margin=6, text_size=10, text_below=True)
    assert (below[6:56, 6:86] == 10).all()
