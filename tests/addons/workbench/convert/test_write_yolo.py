"""COCO to YOLO, and back: the same boxes and masks; what YOLO cannot hold is counted."""

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
import yaml

from rsb_d2 import UserError
from rsb_d2.addons.workbench.convert import convert
from rsb_d2.addons.workbench.convert.shapes import join_polygons, polygons_of_mask
from tests.helpers.data.label_files import converted, image, write

SQUARE = [10, 20, 30, 20, 30, 40, 10, 40]
OTHER = [50, 50, 60, 50, 60, 70, 50, 70]


def coco(folder, annotations, size=(100, 80), name="a.png"):
    image(folder / "images" / name, size)
    content = {
        "images": [{"id": 4, "file_name": name, "width": 100, "height": 80}],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [
            {"id": i, "image_id": 4, "category_id": 7, "iscrowd": 0, "area": 1, **a}
            for i, a in enumerate(annotations, 1)
        ],
    }
    return write(folder / "train.json", json.dumps(content))


def to_yolo(tmp_path, annotations, **options):
    path = coco(tmp_path / "coco", annotations)
    images = [str(tmp_path / "coco" / "images")]
    options = {"images": images, "target": "yolo", **options}
    conversion = convert([str(path)], str(tmp_path / "yolo"), **options)
    rows = (tmp_path / "yolo" / "labels" / "train" / "a.txt").read_text().splitlines()
    notes = {what: n for what, n in conversion.data.notes.items() if n}
    return [[float(n) for n in row.split()] for row in rows], notes


def test_boxes(tmp_path):
    rows, notes = to_yolo(tmp_path, [{"bbox": [10, 20, 30, 40]}, {"bbox": [0, 0, 100, 80]}])
    assert rows == [[1, 0.25, 0.5, 0.3, 0.5], [1, 0.5, 0.5, 1, 1]] and notes == {}
    described = yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text())
    assert described["names"] == {0: "cat", 1: "dog"}
    assert described["train"] == described["val"] == "images/train"
    original = (tmp_path / "coco" / "images" / "a.png").read_bytes()
    assert (tmp_path / "yolo" / "images" / "train" / "a.png").read_bytes() == original


def test_masks_crowds_and_several_polygons(tmp_path):
    mask = np.zeros((80, 100), dtype=np.uint8, order="F")
    mask[20:40, 10:30] = 1
    mask[28:32, 18:22] = 0
    rle = {"size": [80, 100], "counts": mask_util.encode(mask)["counts"].decode()}
    annotations = [
        {"bbox": [10, 20, 50, 50], "segmentation": [SQUARE, OTHER]},
        {"bbox": [10, 20, 20, 20], "segmentation": rle},
        {"bbox": [10, 20, 20, 20], "segmentation": rle, "iscrowd": 1},
        {"bbox": [10, 20, 30, 40]},
    ]
    rows, notes = to_yolo(tmp_path, annotations)
    assert len(rows) == 3 and all(len(row) % 2 and len(row) >= 7 for row in rows)
    assert notes == {
        "objects of several polygons joined to one": 1,
        "masks drawn by their outlines": 1,
        "masks whose holes are filled": 1,
        "crowds left out": 1,
        "boxes written as polygons of four corners": 1,
    }
    back = converted(tmp_path / "yolo", tmp_path / "back")[0]["train"]["annotations"]
    assert [a["bbox"] for a in back] == [[10, 20, 50, 50], [10.5, 20.5, 19, 19], [10, 20, 30, 40]]
    assert [a["area"] for a in back] == [400 + 200, 19 * 19, 30 * 40]


@pytest.mark.parametrize("reverse", [False, True])
def test_joined_polygons_cover_the_same_pixels(reverse):
    third = [70, 10, 90, 10, 80, 30][:: -1 if reverse else 1]
    third = [n for pair in zip(third[1::2], third[0::2]) for n in pair] if reverse else third
    polygons = [SQUARE, OTHER, third]
    apart = mask_util.decode(mask_util.merge(mask_util.frPyObjects(polygons, 80, 100)))
    joined = mask_util.decode(mask_util.frPyObjects([join_polygons(polygons)], 80, 100)[0])
    # Bridges may be a pixel wide where they are drawn.
    assert (apart <= joined).all() and (joined - apart).sum() < 60


def test_outlines_of_masks():
    mask = np.zeros((80, 100), dtype=bool)
    assert polygons_of_mask(mask) == ([], False)
    mask[10:20, 30:50] = mask[40:50, 30:50] = True
    polygons, holes = polygons_of_mask(mask)
    assert len(polygons) == 2 and not holes
    xs, ys = polygons[0][0::2], polygons[0][1::2]
    assert (min(xs), max(xs)) == (30.5, 49.5) and max(ys) - min(ys) == 9


def test_links_and_splits(tmp_path):
    path = coco(tmp_path / "coco", [{"bbox": [10, 20, 30, 40]}])
    content = json.loads(path.read_text())
    for i in range(9):
        image(tmp_path / "coco" / "images" / "sub" / f"{i}.png")
        record = {"id": 10 + i, "file_name": f"sub/{i}.png", "width": 100, "height": 80}
        content["images"].append(record)
    path.write_text(json.dumps(content))
    options = dict(images=[str(tmp_path / "coco" / "images")], target="yolo", split=0.8, seed=1)
    convert([str(path)], str(tmp_path / "yolo"), link=True, **options)
    images = [p for p in (tmp_path / "yolo" / "images").rglob("*.png")]
    assert len(images) == 10 and all(p.is_symlink() and p.read_bytes() for p in images)
    back = converted(tmp_path / "yolo", tmp_path / "back")[0]
    assert {split: len(c["images"]) for split, c in back.items()} == {"train": 8, "val": 2}


def test_coco_files_keep_ids_masks_and_what_else_they_say(tmp_path):
    annotation = {"bbox": [10, 20, 20, 20], "segmentation": [SQUARE], "track": 5, "iscrowd": 1}
    path = coco(tmp_path / "coco", [annotation, {"bbox": [1, 2, 3, 4]}])
    contents, _ = converted(path, tmp_path / "out", images=[str(tmp_path / "coco" / "images")])
    crowd, box = contents["train"]["annotations"]
    assert (crowd["track"], crowd["iscrowd"], crowd["category_id"]) == (5, 1, 7)
    assert crowd["segmentation"] == [SQUARE] and box["bbox"] == [1, 2, 3, 4]
    assert contents["train"]["categories"] == [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f: image(f / "images" / "a.png", (80, 100)), "says 100 x 80 pixels, but"),
        (lambda f: (f / "images" / "a.png").unlink(), "1 of 1 image files are not in"),
        (lambda f: write(f / "train.json", '{"images": ['), "not valid JSON|no format"),
        (lambda f: write(f / "train.json", '{"annotations": []}'), "there is no key 'categories'"),
        (lambda f: coco(f, [{"bbox": [90, 20, 30, 40]}]), "reaches beyond the image"),
        (lambda f: coco(f, []), "has no objects in it"),
    ],
)
def test_bad_files_stop_in_one_line(tmp_path, change, message):
    path = coco(tmp_path / "coco", [{"bbox": [10, 20, 30, 40]}])
    change(tmp_path / "coco")
    with pytest.raises(UserError, match=message) as error:
        images = [str(tmp_path / "coco" / "images")]
        convert([str(path)], str(tmp_path / "yolo"), source="coco", images=images, target="yolo")
    assert len(str(error.value).splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["coco"]
