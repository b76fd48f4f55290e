"""YOLO's labels to COCO: numbers worked out by hand, and supervision's reading of the same."""

import pytest

from rsb_d2 import UserError
from rsb_d2.addons.workbench.convert.yolo.reading import label_path
from tests.helpers.data.label_files import (
    boxes_by_image,
    converted,
    image,
    objects_of,
    write,
    yolo,
)


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


def test_names_as_a_dict_and_as_words_of_yaml(tmp_path):
    yaml = yolo(tmp_path / "in", {"a": "2.0 .5 .5 .1 .1"})
    write(yaml, "train: images\nnc: 3\nnames:\n  0: yes\n  2: 007\n  1: no\n")
    content = converted(yaml.parent, tmp_path / "out")[0]["train"]
    assert [c["name"] for c in content["categories"]] == ["yes", "no", "007"]
    assert objects_of(content)[0][1] == "007"


def test_the_last_images_folder_is_labels():
    assert label_path("/images/my/images/a/b.c.jpg") == "/images/my/labels/a/b.c.txt"
    assert label_path("/my/photos/a.jpg") == "/my/photos/a.txt"


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
        ("0 .5 .5 .1 .1 .9", "has 6 numbers"),
        ("cat .5 .5 .1 .1", "no number: cat"),
        (GOOD + "3 .5 .5 .1 .1\n" * 5, "4 more mistakes"),
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
        ("- train", "is no data.yaml"),
    ],
)
def test_bad_descriptions_stop_in_one_line(tmp_path, text, message):
    yaml = yolo(tmp_path / "in", {"a": GOOD})
    write(yaml, text)
    with pytest.raises(UserError, match=message):
        converted(yaml, tmp_path / "out")


def test_a_folder_without_its_description(tmp_path):
    yolo(tmp_path / "in", {"a": GOOD}).unlink()
    with pytest.raises(UserError, match="has no data.yaml, which names"):
        converted(tmp_path / "in", tmp_path / "out")


def test_one_label_file_for_two_images(tmp_path):
    yaml = yolo(tmp_path / "in", {"a": GOOD})
    image(tmp_path / "in" / "images" / "a.jpg")
    with pytest.raises(UserError, match="a.txt: would be of two images"):
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


def test_keypoints_are_left_out_and_counted(tmp_path):
    yaml = yolo(tmp_path / "in", {"a": "0 .5 .5 .2 .1 .4 .4 2 .5 .5 1\n"})
    write(yaml, yaml.read_text() + "kpt_shape: [2, 3]\n")
    contents, notes = converted(yaml, tmp_path / "out")
    assert objects_of(contents["train"]) == [("a.png", "cat", [40, 36, 20, 8], 0)]
    assert notes == {"objects whose keypoints are left out": 1}


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    yaml = yolo(tmp_path / "in", {"a": GOOD})
    write(tmp_path / "out" / "mine.txt", "mine")
    with pytest.raises(UserError, match="is there already"):
        converted(yaml, tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_an_image_that_is_none(tmp_path):
    yaml = yolo(tmp_path / "in", {"a": GOOD})
    write(tmp_path / "in" / "images" / "b.png", "no image")
    with pytest.raises(UserError, match="cannot use the image .*b.png"):
        converted(yaml, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
