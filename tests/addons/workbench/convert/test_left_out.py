"""What is in a folder and is not taken is counted and named, whatever the format."""

import json

import pytest

from tests.helpers.data.label_files import converted, image, labelme, voc, write, yolo

OTHERS = {
    "phone.HEIC": "files ending in .heic not taken (phone.HEIC)",
    "._a.png": "hidden files not taken (._a.png)",
    ".thumbs/b.png": "hidden or linked folders not taken (.thumbs/)",
    "notes": "files without an ending not taken (notes)",
}


def add_others(folder):
    for name in OTHERS:
        write(folder / name, "x")


def shape(name):
    return (name, "rectangle", [[10, 10], [20, 20]], None)


def make_yolo(folder):
    return yolo(folder, {"a": "0 .5 .5 .1 .1", "b": None}), folder / "images"


def make_voc(folder):
    image(folder / "a.png"), image(folder / "b.png")
    voc(folder / "a.xml", [("cat", 0, 10, 10, 20, 20)], "a.png")
    return folder, folder


def make_labelme(folder):
    image(folder / "a.png"), image(folder / "b.png")
    labelme(folder / "a.json", [shape("cat")], "a.png")
    return folder, folder


def make_coco(folder):
    image(folder / "images" / "a.png"), image(folder / "images" / "b.png")
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20]}
    names = {i + 1: name for i, name in enumerate(("a.png", "b.png"))}
    images = [{"id": i, "file_name": n, "width": 100, "height": 80} for i, n in names.items()]
    content = {"images": images, "annotations": [box], "categories": [{"id": 1, "name": "cat"}]}
    return write(folder / "x.json", json.dumps(content)), folder / "images"


@pytest.mark.parametrize("make", [make_yolo, make_voc, make_labelme, make_coco])
def test_other_files_hidden_ones_and_links(tmp_path, make):
    source, folder = make(tmp_path / "in")
    options = {"images": [str(folder)]} if make is make_coco else {}
    assert converted(source, tmp_path / "before", **options)[1] == {}
    add_others(folder)
    (folder / "loop").symlink_to(tmp_path / "in")
    contents, notes = converted(source, tmp_path / "out", **options)
    assert len(contents["train"]["images"]) == 2
    expected = {what: 1 for what in OTHERS.values()}
    expected.pop("hidden or linked folders not taken (.thumbs/)")
    expected["hidden or linked folders not taken (.thumbs/, loop/)"] = 2
    assert notes == expected


def test_images_in_linked_folders_are_taken_once(tmp_path):
    make_yolo(tmp_path / "in")
    image(tmp_path / "elsewhere" / "c.mpo")
    (tmp_path / "in" / "images" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in")
    (tmp_path / "elsewhere" / "again").symlink_to(tmp_path / "elsewhere")
    contents, notes = converted(tmp_path / "in", tmp_path / "out")
    assert len(contents["train"]["images"]) == 3
    assert sum(notes.values()) == 2 and "link/again/" in str(notes) and "link/back/" in str(notes)


def test_images_and_labels_of_no_one(tmp_path):
    yaml, _ = make_yolo(tmp_path / "y")
    write(tmp_path / "y" / "labels" / "gone.txt", "0 .5 .5 .1 .1")
    assert converted(yaml, tmp_path / "1")[1] == {"files ending in .txt not taken (gone.txt)": 1}
    folder, _ = make_voc(tmp_path / "v")
    image(folder / "more" / "c.jpg")
    assert converted(folder, tmp_path / "2")[1] == {"images not taken (more/c.jpg)": 1}
    file, images = make_coco(tmp_path / "c")
    for name in "defgh":
        image(images / f"{name}.png")
    notes = converted(file, tmp_path / "3", images=[str(images)])[1]
    assert notes == {"images not taken (d.png, e.png, f.png, ...)": 5}
