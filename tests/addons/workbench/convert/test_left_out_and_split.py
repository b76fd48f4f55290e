"""All formats: everything that is left out is counted and named, and splits are stratified."""

import json
from collections import Counter

import numpy as np
import pytest

from rsb_d2 import UserError
from rsb_d2.addons.workbench.convert import convert, split_by_class
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


def test_images_and_labels_of_no_one(tmp_path):
    yaml, _ = make_yolo(tmp_path / "y")
    write(tmp_path / "y" / "labels" / "gone.txt", "0 .5 .5 .1 .1")
    expected = {"label files without an image not taken (gone.txt)": 1}
    assert converted(yaml, tmp_path / "1")[1] == expected
    folder, _ = make_voc(tmp_path / "v")
    image(folder / "more" / "c.jpg")
    assert converted(folder, tmp_path / "2")[1] == {"images not taken (more/c.jpg)": 1}
    file, images = make_coco(tmp_path / "c")
    for name in "defgh":
        image(images / f"{name}.png")
    notes = converted(file, tmp_path / "3", images=[str(images)])[1]
    assert notes == {"images not taken (d.png, e.png, f.png, ...)": 5}


@pytest.mark.parametrize("make", [make_yolo, make_voc, make_labelme])
def test_unreadable_images_without_labels_are_counted(tmp_path, make):
    source, folder = make(tmp_path / "in")
    write(folder / "half.png", "x")
    found = convert([str(source)], str(tmp_path / "out"))
    assert found.summary() == (
        "3 images with 1 object read, 2 images with 1 object written. Left out: "
        "1 image without a label file that cannot be read (half.png)"
    )


@pytest.mark.parametrize("make", [make_yolo, make_voc, make_labelme, make_coco])
@pytest.mark.parametrize("name", ["in", "./in", "in/", "../in", "."])
def test_ways_to_write_a_folder(tmp_path, monkeypatch, make, name):
    make(tmp_path / "in")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir({".": tmp_path / "in", "../in": tmp_path / "other"}.get(name, tmp_path))
    found = convert([name], str(tmp_path / "out"))
    assert found.summary().startswith("2 images with 1 object read, 2 images with 1 object written")
    assert not any("not taken" in what for what, number in found.data.notes.items() if number)


def test_an_unreadable_image_with_labels_stops(tmp_path):
    source, folder = make_yolo(tmp_path / "in")
    write(folder / "half.png", "x")
    write(tmp_path / "in" / "labels" / "half.txt", "0 .5 .5 .1 .1")
    with pytest.raises(UserError, match="half.txt: cannot use the image .*half.png"):
        convert([str(source)], str(tmp_path / "out"))


@pytest.mark.parametrize("name", ["labels/classes.txt", "classes.txt", "data/data.yaml"])
def test_names_of_classes_next_to_another_format(tmp_path, name):
    make_voc(tmp_path / "in")
    write(tmp_path / "in" / name, "cat\n")
    assert convert([str(tmp_path / "in")], str(tmp_path / "out")).source == "voc"
    write(tmp_path / "in" / "a.txt", "0 .5 .5 .1 .1")
    with pytest.raises(UserError, match="has files of yolo and voc; name one with --from"):
        convert([str(tmp_path / "in")], str(tmp_path / "other"))


# ---- splits ----


def made(num_images, seed=0):
    """Images with up to three classes, of which the last is in one image of 40."""
    rng = np.random.default_rng(seed)
    rates = {"often": 0.7, "half": 0.5, "tenth": 0.1, "rare": 0.025}
    return [
        {name for name, rate in rates.items() if rng.random() < rate} for _ in range(num_images)
    ]


@pytest.mark.parametrize("share, seed", [(0.5, 0), (0.8, 1), (0.9, 2)])
def test_each_class_has_its_share(share, seed):
    labels = made(400, seed)
    train, val = split_by_class(labels, share, seed)
    assert (train, val) == split_by_class(labels, share, seed) != split_by_class(labels, share, 9)
    assert len(train) == round(400 * share) and sorted(train + val) == list(range(400))
    counts = [Counter(n for i in part for n in labels[i] or {""}) for part in (train, val)]
    for name in counts[0] | counts[1]:
        whole = counts[0][name] + counts[1][name]
        assert abs(counts[0][name] - share * whole) <= max(1, 0.02 * whole)


def test_a_class_of_two_images_is_in_both_parts():
    labels = [{"many"}] * 30 + [{"two", "many"}] * 2 + [set()] * 5
    train, val = split_by_class(labels, 0.9, 0)
    assert all({30, 31} & set(part) for part in (train, val))


@pytest.mark.parametrize("share", [0, 1, 80, -1, float("nan")])
def test_invalid_shares(share):
    with pytest.raises(UserError, match="--split is"):
        split_by_class(made(10), share, 0)


def test_one_image_cannot_be_split():
    with pytest.raises(UserError, match="there are 1 images"):
        split_by_class([{"a"}], 0.8, 0)
    assert sorted(map(len, split_by_class([{"a"}, set()], 0.8, 0))) == [1, 1]


def test_classes_that_differ_only_in_case_are_a_note(tmp_path):
    data = yolo(tmp_path / "y", {"a": "0 .5 .5 .1 .1\n1 .5 .5 .2 .2"}, names=("Cat", "cat", "dog"))
    _, notes = converted(data, tmp_path / "out")
    assert notes == {"classes that differ only in upper and lower case or blanks (Cat, cat)": 2}


def odd_yolo(folder):
    rows = "0 .5 .5 .1 .1\n0 .5 .5 .1 .1\n1 .5 .5 0 .1\n"  # twice, and of no area
    yolo(folder, {"a": rows + "\n1 .2 .2 .1 .1", "b": None, "c": ""})
    return folder, (3, 4, 3, 2)


def odd_voc(folder):
    image(folder / "JPEGImages" / "a.png"), image(folder / "JPEGImages" / "b.png")
    objects = [("cat", 0, 10, 10, 20, 20), ("cat", 0, 5, 5, 5, 5), ("cat", 0, 10, 10, 20, 20)]
    voc(folder / "Annotations" / "a.xml", objects, "a.png")
    voc(folder / "Annotations" / "b.xml", objects, "b.png")  # in no list
    write(folder / "ImageSets" / "Main" / "train.txt", "a\n")
    return folder, (2, 6, 1, 1)


def odd_labelme(folder):
    image(folder / "a.png"), image(folder / "b.png")
    box = [[10, 10], [20, 20]]
    shapes = [("cat", "rectangle", box, 1), ("cat", "rectangle", [[30, 30], [40, 40]], 1)]
    shapes += [("cat", "point", [[5, 5]], None), ("dog", "rectangle", box, None)] * 2
    labelme(folder / "a.json", shapes, "a.png")
    return folder, (2, 6, 2, 2)


def odd_coco(folder):
    file, _ = make_coco(folder)
    content = json.loads(file.read_text())
    box = content["annotations"][0]
    content["annotations"] += [{**box, "id": 2, "image_id": 9}, {**box, "id": 3, "iscrowd": 1}]
    file.write_text(json.dumps(content))
    return file, (2, 3, 2, 2)


def odd_via(folder):
    image(folder / "a.png"), image(folder / "b.png")
    box = {"name": "rect", "x": 10, "y": 10, "width": 20, "height": 20}
    shapes = [box, box, {**box, "width": 0}, {"name": "point", "cx": 5, "cy": 5}]
    regions = [{"shape_attributes": s, "region_attributes": {"kind": "cat"}} for s in shapes]
    entries = {"a": ("a.png", regions), "b": ("b.png", [])}
    content = {k: {"filename": n, "size": 1, "regions": r} for k, (n, r) in entries.items()}
    write(folder / "via.json", json.dumps(content))
    return folder, (2, 4, 2, 1)


def odd_folder_of_coco(folder):
    """Whose records are repaired, and of which one cannot be."""
    source, _ = make_coco(folder)
    content = json.loads(source.read_text())
    first = content["annotations"][0]
    content["images"][0] |= {"file_name": "C:\\me\\a.png", "width": 0}
    mask = {**first, "bbox": [], "segmentation": [1, 1, 9, 1, 9, 9]}
    content["annotations"] += [mask, {**first, "id": "7", "bbox": [5, 5, 0, 9]}]
    source.write_text(json.dumps(content))
    return folder, (2, 3, 2, 2)


ODD = [odd_yolo, odd_voc, odd_labelme, odd_coco, odd_via, odd_folder_of_coco]


@pytest.mark.parametrize("make", ODD)
@pytest.mark.parametrize("target", ["coco", "yolo"])
def test_the_summary_adds_up(tmp_path, make, target, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    source, (images_read, objects_read, images, objects) = make(tmp_path / "in")
    options = {"images": [str(tmp_path / "in" / "images")]} if make is odd_coco else {}
    found = convert([str(source)], str(tmp_path / "out"), target=target, **options)
    objects -= target == "yolo" and make is odd_coco  # the crowd
    start, _, left_out = found.summary().partition(". Left out: ")
    assert start == (
        f"{images_read} images with {objects_read} objects read, {images} image{'s'[: images > 1]} "
        f"with {objects} object{'s'[: objects > 1]} written"
    )
    numbers = [int(reason.split()[0]) for reason in left_out.split("; ")]
    assert sum(numbers) == objects_read - objects + images_read - images
