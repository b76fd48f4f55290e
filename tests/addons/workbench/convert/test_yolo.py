"""YOLO's files: boxes and polygons computed by hand or read by supervision, and the way back."""

import json
import os

import numpy as np
import pycocotools.mask as mask_util
import pytest
import yaml as yaml_module

from rsb_d2 import UserError
from rsb_d2.addons.workbench.convert import convert
from rsb_d2.addons.workbench.convert.shapes import join_polygons
from tests.helpers.data.label_files import (
    boxes_by_image,
    converted,
    image,
    objects_of,
    write,
    yolo,
)

# ---- reading ----


def test_boxes_polygons_and_background(tmp_path):
    rows = {
        # 100 x 80 pixels: a box, a polygon, the box again, a box without height.
        "a": "1 0.5 0.5 0.2 0.25\n0 0.1 0.1 0.3 0.1 0.3 0.5\n1 0.5 0.5 0.2 0.25\n0 .5 .5 .1 0\n",
        "b": "",
        "c": None,
    }
    contents, notes = converted(yolo(tmp_path / "in", rows), tmp_path / "out")
    content = contents["train"]
    assert [c["name"] for c in content["categories"]] == ["cat", "dog"]
    assert objects_of(content) == [
        ("a.png", "dog", [40, 30, 20, 20], 0),
        ("a.png", "cat", [10, 8, 20, 32], 0),
    ]
    box, polygon = content["annotations"]
    assert "segmentation" not in box and box["area"] == 400
    assert polygon["segmentation"] == [[10, 8, 30, 8, 30, 40]] and polygon["area"] == 320
    assert [i["file_name"] for i in content["images"]] == ["a.png", "b.png", "c.png"]
    assert sorted(notes.values()) == [1, 1] and any("twice" in note for note in notes)


def test_the_size_is_that_of_the_upright_image(tmp_path):
    yaml = yolo(tmp_path / "in", {"a": "0 0.5 0.5 0.2 0.1"})
    image(tmp_path / "in" / "images" / "a.png", (100, 80), orientation=6)
    content = converted(yaml, tmp_path / "out")[0]["train"]
    assert (content["images"][0]["width"], content["images"][0]["height"]) == (80, 100)
    assert objects_of(content)[0][2] == [32, 45, 16, 10]


@pytest.mark.parametrize(
    "head, splits",
    [
        ("path: ../in\ntrain: images/a\nval: images/b", {"train": 2, "val": 1}),
        ("train: [images/a, images/b]", {"train": 3}),
        ("train: list.txt\nval: images/b", {"train": 2, "val": 1}),
        ("train: ../images/a\nval: ../images/b", {"train": 2, "val": 1}),  # as of Roboflow
        ("path: /nowhere\ntrain: images/a\ntest: images/b", {"train": 2, "test": 1}),
        ("train: /content/in/images/a\nval: /content/in/images/b", {"train": 2, "val": 1}),
        ("train: C:\\me\\images\\a\nval: C:/me/images/b", {"train": 2, "val": 1}),
    ],
)
def test_where_images_are(tmp_path, head, splits):
    rows = {"a/1": "0 .5 .5 .1 .1", "a/2": None, "b/3": "1 .5 .5 .1 .1"}
    yaml = yolo(tmp_path / "in", rows, head=head)
    write(tmp_path / "in" / "list.txt", "./images/a/1.png\nimages/a/2.png\n./images/a/1.png\n")
    contents, notes = converted(yaml, tmp_path / "out")
    assert {split: len(c["images"]) for split, c in contents.items()} == splits
    assert sum(len(c["annotations"]) for c in contents.values()) == 1 + ("images/b" in head)
    assert ("images listed more than once" in notes) == ("list.txt" in head)
    moved = "paths that do not exist, looked up in the folder of the data set"
    assert notes.get(moved, 0) == head.count("/content/") + head.count("C:")


GOOD = "0 .5 .5 .1 .1\n"


@pytest.mark.parametrize(
    "rows, message",
    [
        (GOOD + "2 .5 .5 .1 .1", "a.txt, line 2: has the class 2, but data.yaml has 2 names"),
        ("-1 .5 .5 .1 .1", "has the class -1"),
        ("0.5 .5 .5 .1 .1", "has the class 0.5"),
        ("0 .9 .5 .4 .1", "reaches beyond the image: its box is 70, 36, 110, 44"),
        ("0 1.2 .5 .1 .1", "write --clip"),
        ("0 .1 .1 .5 .1 .5 1.5", "reaches beyond the image"),
        ("0 nan .5 .1 .1", "not finite"),
        ("0 .5 .5 .1 inf", "not finite"),
        ("0 .5 .5 -.1 .1", "negative size"),
        ("0 .5 .5 .1", "has 4 numbers"),
        ("0 .5 .5 .1 .1 .9", "keypoints need 'kpt_shape' in data.yaml"),
        ("cat .5 .5 .1 .1", "not a number: cat"),
        (GOOD + "3 .5 .5 .1 .1\n" * 5, "4 more mistakes"),
        (GOOD + "3 .5 .5 .1 .1\n" * 2, "1 more mistake: "),
    ],
)
def test_bad_rows_stop_in_one_line(tmp_path, rows, message):
    yaml = yolo(tmp_path / "in", {"a": rows, "b": GOOD})
    with pytest.raises(UserError) as error:
        converted(yaml, tmp_path / "out")
    assert message in str(error.value) and len(str(error.value).splitlines()) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("train: images", "has no 'names'"),
        ("train: images\nnames: {0: a, 2: b}", "must be 0 ... 1"),
        ("train: images\nnc: 3\nnames: [a, b]", "'nc' is 3, but there are 2"),
        ("train: images\nnames: [a, a]", "a more than once"),
        ("train: nowhere\nnames: [a]", "'train' is nowhere, but there is no such"),
        ("names: [a]", "names no images"),
        ("train: labels\nnames: [a]", "a folder without images; there are a.txt"),
        ("train: [images\nnames: [a]", "line 2: is not valid YAML"),
        ("- train", "is not a data.yaml"),
    ],
)
def test_bad_descriptions_stop_in_one_line(tmp_path, text, message):
    yaml = yolo(tmp_path / "in", {"a": GOOD})
    write(yaml, text)
    with pytest.raises(UserError, match=message):
        converted(yaml, tmp_path / "out")


def test_clip_cuts_at_the_edge(tmp_path):
    rows = "0 .9 .5 .4 .1\n1 -.5 -.5 .1 .1\n1 .8 .5 1.2 .5 .8 1.0\n"
    contents, notes = converted(yolo(tmp_path / "in", {"a": rows}), tmp_path / "out", clip=True)
    boxes = [a["bbox"] for a in contents["train"]["annotations"]]
    assert boxes == [[70, 36, 30, 8], [80, 40, 20, 40]]
    # The triangle loses its right half: (80, 40), (100, 40), (100, 60), (80, 80).
    assert contents["train"]["annotations"][1]["area"] == 600
    assert notes["objects cut at the edge of the image"] == 3


def test_the_same_boxes_as_supervision(tmp_path):
    supervision = pytest.importorskip("supervision")
    rows = {
        "a": "1 0.51 0.53 0.2 0.25\n0 0.123456 0.4 0.2 0.1\n",
        "b": "0 .1 .1 .3 .1 .3 .5 .2 .7\n1 .5 .5 .6 .5 .9 .9\n",
        "c": "",
    }
    yaml = yolo(tmp_path / "in", rows)
    content = converted(yaml, tmp_path / "out")[0]["train"]
    theirs = supervision.DetectionDataset.from_yolo(
        str(tmp_path / "in" / "images"), str(tmp_path / "in" / "labels"), str(yaml)
    )
    expected = {}
    for path, _, found in theirs:
        rows = zip(found.class_id, found.xyxy.tolist())
        expected[path.rsplit("/", 1)[1]] = sorted((theirs.classes[i], *box) for i, box in rows)
    ours = boxes_by_image(content)
    assert ours.keys() == expected.keys()
    for name, rows in ours.items():
        assert [r[0] for r in rows] == [r[0] for r in expected[name]]
        for row, other in zip(rows, expected[name]):
            assert row[1:] == pytest.approx(other[1:], abs=1.01 if name == "b.png" else 0.01)


# ---- writing ----

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
    described = yaml_module.safe_load((tmp_path / "yolo" / "data.yaml").read_text())
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


@pytest.mark.parametrize("third", [[70, 10, 90, 10, 80, 30], [80, 30, 90, 10, 70, 10]])
def test_joined_polygons_cover_the_same_pixels(third):
    polygons = [SQUARE, OTHER, third]
    apart = mask_util.decode(mask_util.merge(mask_util.frPyObjects(polygons, 80, 100)))
    joined = mask_util.decode(mask_util.frPyObjects([join_polygons(polygons)], 80, 100)[0])
    # Bridges may be a pixel wide where they are drawn.
    assert (apart <= joined).all() and (joined - apart).sum() < 60


# ---- names ----

LAYOUTS = {
    "images below the split": ["train/images/a.jpg", "valid/images/a.jpg", "test/images/b.png"],
    "images alone": ["images/a.jpg", "images/b.jpg"],
    "images in images": ["images/images/a.jpg", "images/labels/images/b.jpg"],
    "labels and images": ["labels/images/a.jpg", "images/labels/a.jpg", "labels/a.jpg", "a.jpg"],
    "one stem": ["a/images/x.jpg", "images/a/x.png", "a/x.jpg"],
    "an image called images": ["images.jpg", "x/images.jpg", "Images/a.jpg"],
    "hidden": [".a.jpg", ".thumbs/b.jpg", "c/..d.jpg"],
    "no ending of images": ["a", "b.dat", "images/c.PNG", "c.jpg.txt", "x.y/z"],
    "odd": [
        "-a.jpg",
        "b c.jpg",
        "d\ne.jpg",
        "[f].jpg",
        "#g.jpg",
        "ä 画.jpg",
        "h.jpg.jpg",
        "'i'.jpg",
    ],
}


def ultralytics_label(path):
    """https://github.com/ultralytics/ultralytics, ultralytics/data/utils.py, img2label_paths."""
    sa, sb = f"{os.sep}images{os.sep}", f"{os.sep}labels{os.sep}"
    return sb.join(path.rsplit(sa, 1)).rsplit(".", 1)[0] + ".txt"


def coco_of(folder, names, segmentation=False):
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    for i, name in enumerate(names):
        kind = {".png": "PNG", ".PNG": "PNG"}.get(os.path.splitext(name)[1], "JPEG")
        picture = image(folder / "my images" / f"{i}.{kind.lower()}")
        target = folder / "my images" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        picture.rename(target)
        content["images"].append({"id": i, "file_name": name, "width": 100, "height": 80})
        # A box by which the image is known again.
        x, y, w, h = box = [i + 1, 2 * i + 1, 20 + i, 30]
        annotation = {"id": i + 1, "image_id": i, "category_id": 1, "bbox": box, "iscrowd": 0}
        if segmentation:
            annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        content["annotations"].append({**annotation, "area": w * h})
    return str(write(folder / "train.json", json.dumps(content)))


@pytest.mark.parametrize("number", range(len(LAYOUTS)), ids=list(LAYOUTS))
def test_ultralytics_finds_all_labels(tmp_path, number):
    names, link = list(LAYOUTS.values())[number], number % 2 == 1
    file = coco_of(tmp_path / "in", names, segmentation=number % 3 == 1)
    # A folder called images above the output does not matter.
    output = tmp_path / "images" / "out"
    images = [str(tmp_path / "in" / "my images")]
    convert([file], str(output), images=images, target="yolo", link=link)
    found = [p for p in (output / "images").rglob("*") if not p.is_dir()]
    assert len(found) == len(names)
    assert all(os.path.getsize(ultralytics_label(str(path))) > 0 for path in found)
    assert not [
        p for p in found if any(part.startswith(".") for part in p.relative_to(output).parts)
    ]
    back = converted(output, tmp_path / "back")[0]["train"]
    boxes = sorted(row for rows in boxes_by_image(back).values() for row in rows)
    expected = [("cat", i + 1, 2 * i + 1, 21 + 2 * i, 2 * i + 31) for i in range(len(names))]
    assert boxes == sorted(expected)
