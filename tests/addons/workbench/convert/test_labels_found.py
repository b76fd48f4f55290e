"""To YOLO: labels lie where Ultralytics and our reader look, whatever the images are called."""

import importlib
import json
import os

import pytest

from rsb_d2 import UserError
from rsb_d2.addons.workbench.convert import convert
from tests.helpers.data.label_files import boxes_by_image, converted, image, write

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


@pytest.mark.parametrize("names", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("options", [{}, {"link": True}, {"segmentation": True}], ids=str)
def test_labels_lie_where_they_are_looked_for(tmp_path, names, options):
    link = options.get("link", False)
    file = coco_of(tmp_path / "in", names, options.get("segmentation", False))
    # Folders called images above the output, and above the input, are no part of it.
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


def test_roboflows_layout_and_back(tmp_path):
    """A data set of Roboflow's, to COCO and from there to YOLO: no label is lost on the way."""
    for split in ("train", "valid"):
        for name in "ab":
            image(tmp_path / "in" / split / "images" / f"{name}.png")
            write(tmp_path / "in" / split / "labels" / f"{name}.txt", "0 .5 .5 .2 .25\n")
    write(tmp_path / "in" / "data.yaml", "train: train/images\nval: valid/images\nnames: [cat]\n")
    convert([str(tmp_path / "in")], str(tmp_path / "coco"))
    files = [str(tmp_path / "coco" / f"{split}.json") for split in ("train", "val")]
    convert(files, str(tmp_path / "yolo"), images=[str(tmp_path / "in")], target="yolo")
    contents, notes = converted(tmp_path / "yolo", tmp_path / "back")
    assert {s: len(c["annotations"]) for s, c in contents.items()} == {"train": 2, "val": 2}
    assert notes == {}


@pytest.mark.parametrize("split", ["val", "test"])
def test_one_split_alone(tmp_path, split):
    image(tmp_path / "in" / "images" / "a.png")
    write(tmp_path / "in" / "labels" / "a.txt", "0 .5 .5 .2 .25\n")
    write(tmp_path / "in" / "data.yaml", f"{split}: images\nnames: [cat]\n")
    convert([str(tmp_path / "in")], str(tmp_path / "yolo"), target="yolo")
    contents, _ = converted(tmp_path / "yolo", tmp_path / "back")
    # Ultralytics starts with train and val alone.
    assert {"train", "val", split} == contents.keys()
    assert all(len(content["annotations"]) == 1 for content in contents.values())


@pytest.mark.parametrize("target", ["coco", "yolo"])
def test_a_file_that_is_read_otherwise_is_not_kept(tmp_path, monkeypatch, target):
    file = coco_of(tmp_path / "in", ["a.jpg", "b.jpg"])
    images = [str(tmp_path / "in" / "my images")]

    def change(path, *old_and_new):
        path.write_text(path.read_text().replace(*old_and_new))

    def damaged(write_files):
        def write_and_damage(data, *args):
            written = write_files(data, *args)
            for folder in tmp_path.rglob("*"):
                if folder.name == "train.json" and folder.parent.name != "in":
                    change(folder, "21", "22")
                if folder.name == "b.txt":
                    change(folder, "0 ", "1 ")
                if folder.name == "data.yaml":
                    change(folder, "names:", "names: [cat, dog]\nold:")
            return written

        return write_and_damage

    # The module, not the function of that name.
    module = importlib.import_module("rsb_d2.addons.workbench.convert.convert")
    for name in ("write_coco", "write_yolo"):
        monkeypatch.setattr(module, name, damaged(getattr(module, name)))
    with pytest.raises(UserError, match="not read as it was") as error:
        convert([file], str(tmp_path / "out"), images=images, target=target)
    assert len(str(error.value).splitlines()) == 1
    assert os.listdir(tmp_path) == ["in"]
