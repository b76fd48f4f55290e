"""Pascal VOC to COCO: corners from 1 on, inclusive, as Detectron2's own reader has them."""

import pytest
from detectron2.data.datasets.pascal_voc import load_voc_instances

from rsb_d2 import UserError
from tests.helpers.data.label_files import (
    boxes_by_image,
    converted,
    image,
    objects_of,
    voc,
    write,
)


@pytest.fixture
def folder(tmp_path):
    """Two images with objects, one whose file has none, one without a file."""
    folder = tmp_path / "in"
    for name in "abcd":
        image(folder / "JPEGImages" / f"{name}.jpg")
    voc(
        folder / "Annotations" / "a.xml",
        [("dog", 0, 1, 1, 100, 80), ("cat", 1, 5, 6, 5, 9)],
        "a.jpg",
    )
    voc(folder / "Annotations" / "b.xml", [("cat", 0, 11, 21, 30, 40)], "b.jpg")
    voc(folder / "Annotations" / "c.xml", [], "c.jpg")
    return folder


def test_corners_difficult_objects_and_background(folder, tmp_path):
    contents, notes = converted(folder, tmp_path / "out")
    content = contents["train"]
    assert objects_of(content) == [
        ("a.jpg", "dog", [0, 0, 100, 80], 0),
        ("a.jpg", "cat", [4, 5, 1, 4], 1),
        ("b.jpg", "cat", [10, 20, 20, 20], 0),
    ]
    assert [i["file_name"] for i in content["images"]] == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert notes == {"difficult objects made crowds: not trained on, not counted": 1}
    labelled, notes = converted(folder, tmp_path / "labelled", labelled_only=True)
    assert len(labelled["train"]["images"]) == 3
    assert notes["images without a label file left out"] == 1


def test_the_same_boxes_as_detectron2(folder, tmp_path):
    write(folder / "ImageSets" / "Main" / "train.txt", "a\nb\n")
    ours = boxes_by_image(converted(folder, tmp_path / "out")[0]["train"])
    theirs = load_voc_instances(str(folder), "train", ["cat", "dog"])
    expected = {
        record["file_name"].rsplit("/", 1)[1]: sorted(
            (["cat", "dog"][o["category_id"]], *o["bbox"]) for o in record["annotations"]
        )
        for record in theirs
    }
    assert ours == expected and sum(map(len, ours.values())) == 3


def test_lists_are_the_splits(folder, tmp_path):
    write(folder / "ImageSets" / "Main" / "train.txt", "a\n")
    write(folder / "ImageSets" / "Main" / "val.txt", "b\nd\n")
    contents, notes = converted(folder, tmp_path / "out")
    names = {s: [i["file_name"] for i in c["images"]] for s, c in contents.items()}
    assert names == {"train": ["a.jpg"], "val": ["b.jpg", "d.jpg"]}
    assert notes["images in no list of ImageSets/Main left out (c)"] == 1
    write(folder / "ImageSets" / "Main" / "val.txt", "b\nnone\n")
    with pytest.raises(UserError, match="val.txt has none, which has no image"):
        converted(folder, tmp_path / "other")


def test_folders_are_the_splits(tmp_path):
    for split in ("train", "valid"):
        image(tmp_path / "in" / split / "a.jpg")
        voc(tmp_path / "in" / split / "a.xml", [("cat", 0, 1, 1, 10, 10)], "a.jpg")
    contents, _ = converted(tmp_path / "in", tmp_path / "out")
    names = {s: [i["file_name"] for i in c["images"]] for s, c in contents.items()}
    assert names == {"train": ["train/a.jpg"], "val": ["valid/a.jpg"]}


@pytest.mark.parametrize("name", ["", "C:\\photos\\old.jpg", "b", "folder/b.jpg"])
def test_names_that_are_out_of_date(folder, tmp_path, name):
    voc(folder / "Annotations" / "b.xml", [("cat", 0, 11, 21, 30, 40)], name)
    content = converted(folder, tmp_path / "out")[0]["train"]
    assert objects_of(content)[-1][:2] == ("b.jpg", "cat")


def cut(folder):
    path = folder / "Annotations" / "b.xml"
    path.write_text(path.read_text()[:150])


def turned(folder):
    image(folder / "JPEGImages" / "b.jpg", (100, 80), orientation=6)


def one(*thing, filename="b.jpg", **size):
    return lambda folder: voc(folder / "Annotations" / "b.xml", [thing], filename, **size)


@pytest.mark.parametrize(
    "change, message",
    [
        (cut, "b.xml: is truncated or not XML"),
        (turned, "b.xml: says 100 x 80 pixels, but .*b.jpg has 80 x 100; if its EXIF"),
        (one("cat", 0, 1, 1, 9, 9, size=(200, 160)), "says 200 x 160 pixels, but"),
        (one("cat", 0, 50, 50, 120, 60), "b.xml, object 1: reaches beyond the image"),
        (one("cat", 0, 50, 50, "nan", 60), "not finite"),
        (one("cat", 0, 50, 50, 40, 60), "the wrong order: 50, 50, 40, 60"),
        (one("cat", 0, 50, "", 40, 60), "has no <bndbox> with"),
        (one("", 0, 1, 1, 9, 9), "object 1: has no <name>"),
        (
            one("cat", 0, 1, 1, 9, 9, filename="a.jpg"),
            "b.xml: is of the image .*a.jpg, as is .*a.x",
        ),
        (
            lambda f: (f / "JPEGImages" / "b.jpg").unlink(),
            "b.jpg, which does not exist",
        ),
        (lambda f: (f / "JPEGImages" / "b.jpg").write_text(""), "b.jpg: the file is empty"),
        (lambda f: write(f / "Annotations" / "e.xml", "<html></html>"), "is not Pascal VOC"),
    ],
)
def test_bad_files_stop_in_one_line(folder, tmp_path, change, message):
    change(folder)
    with pytest.raises(UserError, match=message) as error:
        converted(folder, tmp_path / "out")
    assert len(str(error.value).splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_the_folder_above_has_the_same_splits(folder, tmp_path):
    """As VOCdevkit above VOC2007."""
    write(folder / "ImageSets" / "Main" / "train.txt", "a\n")
    write(folder / "ImageSets" / "Main" / "val.txt", "b\nc\n")
    (tmp_path / "devkit").mkdir()
    folder.rename(tmp_path / "devkit" / "VOC2007")
    contents, _ = converted(tmp_path / "devkit", tmp_path / "out")
    assert {split: len(c["images"]) for split, c in contents.items()} == {"train": 1, "val": 2}
    write(tmp_path / "devkit" / "VOC2012" / "ImageSets" / "Main" / "train.txt", "a\n")
    with pytest.raises(UserError, match="several data sets; name one of .*VOC2007, .*VOC2012"):
        converted(tmp_path / "devkit", tmp_path / "again")


def test_clicks_are_left_out_and_counted(folder, tmp_path):
    click, line = ("dog", 0, 7, 9, 7, 9), ("dog", 0, 7, 9, 7, 20)
    voc(folder / "Annotations" / "c.xml", [click, line], "c.jpg")
    contents, notes = converted(folder, tmp_path / "out")
    assert ("c.jpg", "dog", [6, 8, 1, 12], 0) in objects_of(contents["train"])
    assert len(objects_of(contents["train"])) == 4
    assert notes["boxes of one pixel left out"] == 1
