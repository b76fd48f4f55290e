"""Pascal VOC to COCO: corners from 1 on, inclusive, as Detectron2's own reader has them."""

import pytest
from detectron2.data.datasets.pascal_voc import load_voc_instances

from rsb_d2 import UserError
from tests.helpers.data.label_files import (
    boxes_by_image,
    converted,
    image,
    labelme,
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
    with pytest.raises(UserError, match="the list of val has none, which has no image"):
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


def test_other_xml_files_are_counted(folder, tmp_path):
    write(folder / "Annotations" / "e.xml", "<html></html>")
    contents, notes = converted(folder, tmp_path / "out")
    assert notes["XML files that are not Pascal VOC left out (Annotations/e.xml)"] == 1
    assert len(contents["train"]["images"]) == 4 and not any(".xml not taken" in n for n in notes)


def test_the_xml_file_of_another_tool(tmp_path):
    """CVAT's own format has all images in one file."""
    write(tmp_path / "in" / "annotations.xml", "<?xml version='1.0'?><annotations/>")
    with pytest.raises(UserError, match="annotations.xml is not Pascal VOC, .* COCO's format"):
        converted(tmp_path / "in", tmp_path / "out")


LISTS = {
    "train and val": ({"train": "a\n", "val": "b\n"}, {"train": "a", "val": "b"}),
    "trainval and test": ({"trainval": "a\n", "test": "b\n"}, {"train": "a", "test": "b"}),
    "all four": ({"train": "a", "val": "b", "trainval": "a\nb"}, {"train": "a", "val": "b"}),
    "of CVAT": ({"Train": "a\n", "Validation": "b\n"}, {"train": "a", "val": "b"}),
    "of Roboflow's names": ({"valid": "b\n", "train": "a\n"}, {"train": "a", "val": "b"}),
    "with extensions": ({"train": "a.jpg\r\n", "val": "\ufeffb.jpg\n"}, {"train": "a", "val": "b"}),
    "with numbers": ({"train": "a  1\n", "val": "b -1\n"}, {"train": "a", "val": "b"}),
    "with blanks": ({"train": "a\n", "val": "my b 1\n"}, {"train": "a", "val": "my b 1"}),
}


@pytest.mark.parametrize("kind", LISTS)
def test_kinds_of_lists(kind, tmp_path):
    files, splits = LISTS[kind]
    for name in splits.values():
        image(tmp_path / "in" / "JPEGImages" / f"{name}.jpg")
        box = [("cat", 0, 1, 1, 10, 10)]
        voc(tmp_path / "in" / "Annotations" / f"{name}.xml", box, f"{name}.jpg")
    for name, text in files.items():
        write(tmp_path / "in" / "ImageSets" / "Main" / f"{name}.txt", text)
    contents, _ = converted(tmp_path / "in", tmp_path / "out")
    assert {split: [i["file_name"] for i in c["images"]] for split, c in contents.items()} == {
        split: [f"{name}.jpg"] for split, name in splits.items()
    }


def test_a_listed_name_of_two_images(tmp_path):
    for part in ("day", "night"):
        image(tmp_path / "in" / "JPEGImages" / part / "a.jpg")
        box = [("cat", 0, 1, 1, 10, 10)]
        voc(tmp_path / "in" / "Annotations" / part / "a.xml", box, "a.jpg")
    write(tmp_path / "in" / "ImageSets" / "Main" / "train.txt", "a\n")
    with pytest.raises(UserError, match="has a, which is of 2 images: add their folder"):
        converted(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize("above", [".", "VOCdevkit", "VOCdevkit/VOC2007/Annotations"])
def test_a_data_set_named_by_another_folder(folder, above, tmp_path):
    write(folder / "ImageSets" / "Main" / "train.txt", "a\n")
    write(folder / "ImageSets" / "Main" / "val.txt", "b\nc\nd\n")
    place = tmp_path / "zip" / "VOCdevkit" / "VOC2007"
    place.parent.mkdir(parents=True)
    folder.rename(place)
    image(tmp_path / "zip" / "other" / "x.jpg")
    contents, notes = converted(tmp_path / "zip" / above, tmp_path / "out")
    assert {split: len(c["images"]) for split, c in contents.items()} == {"train": 1, "val": 3}
    assert notes.get("images not taken (other/x.jpg)", 0) == (above == ".")


PLACES = {
    "Images": ("Annotations", "Images"),
    "imgs below the label files": (".", "imgs"),
    "above the label files": ("labels", "."),
    "mirrored": ("Annotations/day", "Images/day"),
}


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("write_labels", [voc, labelme])
def test_folders_of_images(kind, write_labels, tmp_path):
    labels, images = PLACES[kind]
    image(tmp_path / "in" / images / "a.jpg")
    thing = ("cat", 0, 11, 21, 30, 40)
    file = tmp_path / "in" / labels / ("a.xml" if write_labels is voc else "a.json")
    if write_labels is labelme:
        thing = ("cat", "rectangle", [[10, 20], [30, 40]], None)
    write_labels(file, [thing], "a.jpg")
    content = converted(tmp_path / "in", tmp_path / "out")[0]["train"]
    assert objects_of(content) == [("a.jpg", "cat", [10, 20, 20, 20], 0)]


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
