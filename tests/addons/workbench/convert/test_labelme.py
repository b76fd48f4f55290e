"""LabelMe to COCO: shapes of each kind, by numbers worked out by hand."""

import base64
import io
import math

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image

from rsb_d2 import UserError
from tests.helpers.data.label_files import (
    converted,
    image,
    labelme,
    objects_of,
)

TRIANGLE = ("cat", "polygon", [[10, 8], [30, 8], [30, 40]], None)


def encoded(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_shapes(tmp_path):
    image(tmp_path / "in" / "images" / "a.png")
    shapes = [
        TRIANGLE,
        ("dog", "rectangle", [[50, 60], [40, 30]], None),
        ("cat", "circle", [[50, 40], [50, 50]], None),
        ("cat", "point", [[50, 40]], None),
        ("dog", "linestrip", [[50, 40], [1, 1], [5, 5]], None),
        ("__ignore__", "rectangle", [[50, 60], [40, 30]], None),
    ]
    labelme(tmp_path / "in" / "labels" / "a.json", shapes, "..\\images\\a.png")
    contents, notes = converted(tmp_path / "in", tmp_path / "out")
    content = contents["train"]
    assert objects_of(content) == [
        ("a.png", "cat", [10, 8, 20, 32], 0),
        ("a.png", "dog", [40, 30, 10, 30], 0),
        ("a.png", "cat", [40, 30, 20, 20], 0),
    ]
    triangle, rectangle, circle = content["annotations"]
    assert triangle["area"] == 320 and "segmentation" not in rectangle
    # Of a regular polygon of 64 corners on a circle of radius 10.
    assert circle["area"] == pytest.approx(32 * 100 * math.sin(2 * math.pi / 64), abs=0.01)
    assert list(notes.values()) == [3]


@pytest.mark.parametrize("kind", ["oriented_rectangle", "rotation"])
def test_rotated_rectangles(tmp_path, kind):
    """Of LabelMe and X-AnyLabeling."""
    image(tmp_path / "in" / "a.png")
    shape = (7, kind, [[20, 10], [40, 20], [30, 40], [10, 30]], None)
    labelme(tmp_path / "in" / "a.json", [shape], "a.png")
    content = converted(tmp_path / "in", tmp_path / "out")[0]["train"]
    (found,) = content["annotations"]
    assert found["segmentation"] == [[20, 10, 40, 20, 30, 40, 10, 30]]
    assert found["bbox"] == [10, 10, 30, 30] and content["categories"][0]["name"] == "7"


def test_groups_are_one_object(tmp_path):
    image(tmp_path / "in" / "a.png")
    second = [[50, 8], [70, 8], [70, 40]]
    shapes = [(*TRIANGLE[:3], 7), ("cat", "polygon", second, 7), ("dog", "polygon", second, 7)]
    labelme(tmp_path / "in" / "a.json", shapes, "a.png")
    cat, dog = converted(tmp_path / "in", tmp_path / "out")[0]["train"]["annotations"]
    assert len(cat["segmentation"]) == 2 and cat["bbox"] == [10, 8, 60, 32]
    assert len(dog["segmentation"]) == 1


def test_a_mask(tmp_path):
    image(tmp_path / "in" / "a.png")
    part = np.zeros((5, 4), dtype=bool)
    part[1:4, 1:3] = True
    shape = {"label": "cat", "shape_type": "mask", "points": [[20, 30], [23, 34]]}
    labelme(tmp_path / "in" / "a.json", [{**shape, "mask": encoded(part)}], "a.png")
    (found,) = converted(tmp_path / "in", tmp_path / "out")[0]["train"]["annotations"]
    mask = mask_util.decode(found["segmentation"])
    expected = np.zeros((80, 100), dtype=bool)
    expected[31:34, 21:23] = True
    assert (mask == expected).all() and found["bbox"] == [21, 31, 2, 3] and found["area"] == 6


def test_an_image_embedded_in_its_file(tmp_path):
    pixels = np.full((80, 100, 3), 77, dtype=np.uint8)
    labelme(tmp_path / "in" / "a.json", [TRIANGLE], "gone.jpg", data=encoded(pixels))
    image(tmp_path / "in" / "b.png")
    content = converted(tmp_path / "in", tmp_path / "out")[0]["train"]
    assert objects_of(content)[0][0] == "out/images/a.png"
    assert (np.asarray(Image.open(tmp_path / "out" / "images" / "a.png")) == 77).all()
    assert len(content["images"]) == 2  # and one of background


def test_the_same_as_supervision(tmp_path):
    formats = pytest.importorskip("supervision.dataset.formats.labelme")
    image(tmp_path / "in" / "a.png")
    rectangle = ("dog", "rectangle", [[40, 30], [50, 60]], None)
    labelme(tmp_path / "in" / "a.json", [rectangle, TRIANGLE], "a.png")
    _, _, found = formats.load_labelme_annotations(str(tmp_path / "in"), str(tmp_path / "in"))
    (found,) = found.values()
    ours = objects_of(converted(tmp_path / "in", tmp_path / "out")[0]["train"])
    corners = [[x, y, x + w, y + h] for _, _, (x, y, w, h), _ in ours]
    assert np.allclose(found.xyxy, corners, atol=1.01) and len(corners) == 2


def doubled(folder):
    labelme(folder / "b.json", [TRIANGLE], "a.png")


def one(*shape, **options):
    return lambda folder: labelme(folder / "a.json", [shape], "a.png", **options)


def cut(folder):
    path = folder / "a.json"
    path.write_text(path.read_text()[:100])


@pytest.mark.parametrize(
    "change, message",
    [
        (cut, "a.json: is truncated or not JSON"),
        (doubled, "b.json: is of the image .*a.png, as is .*a.json"),
        (one("cat", "polygon", [[1, 1], [2, 2]]), "a.json, shape 1: is a polygon of 2 points"),
        (one("cat", "polygon", []), "a polygon of 0 points"),
        (one("cat", "star", [[1, 1], [2, 2], [3, 3]]), "is a star of 3 points"),
        (one("cat", "polygon", [[1, 1], [2, 2], [3]]), "'points' that are not"),
        (one("cat", "rectangle", [[50, 50], [150, 60]]), "reaches beyond the image"),
        (one("cat", "rectangle", [[50, 50], [math.nan, 60]]), "not finite"),
        (one("", "rectangle", [[50, 50], [55, 60]]), "has no 'label'"),
        (one(*TRIANGLE, size=(80, 100)), "says 80 x 100 pixels, but"),
        (lambda f: labelme(f / "c.json", [TRIANGLE], "c.png"), "c.png, which does not exist"),
        (lambda f: labelme(f / "c.json", [TRIANGLE], "c.png", data="AAAA"), "is not an image"),
        (lambda f: labelme(f / "a.json", [{"label": "cat"}], "a.png"), "'points' that are not"),
    ],
)
def test_bad_files_stop_in_one_line(tmp_path, change, message):
    image(tmp_path / "in" / "a.png")
    labelme(tmp_path / "in" / "a.json", [TRIANGLE], "a.png")
    change(tmp_path / "in")
    with pytest.raises(UserError, match=message) as error:
        converted(tmp_path / "in", tmp_path / "out")
    assert len(str(error.value).splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_a_file_that_names_itself(tmp_path):
    """As in LabelMe's own tutorial: the image is the one with the stem of the file."""
    image(tmp_path / "in" / "apc2016_obj3.jpg")
    labelme(tmp_path / "in" / "apc2016_obj3.json", [TRIANGLE], "apc2016_obj3.json")
    content = converted(tmp_path / "in", tmp_path / "out")[0]["train"]
    assert objects_of(content) == [("apc2016_obj3.jpg", "cat", [10, 8, 20, 32], 0)]
