"""Small files as the labeling tools write them, imitated key by key: each goes in."""

import json

import pytest

from rsb_d2 import UserError
from rsb_d2.addons.workbench.convert import convert
from tests.helpers.data.label_files import converted, image, objects_of, voc, write

BOX = [10, 20, 30, 16]  # of a cat; of 100 x 80 pixels
ROW = "0 0.25 0.35 0.3 0.2"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))


def boxes(contents):
    return {
        split: [(name, category, box) for name, category, box, _ in objects_of(content)]
        for split, content in contents.items()
    }


# ---- YOLO ----


DATA_YAML = {
    "v5": "path: ../data  # dataset root dir\ntrain: images/train\nval: images/val\ntest:\n\n"
    "# Classes\nnc: 2\nnames: ['cat', 'dog']\n",
    "v5 to v12": "path: data\ntrain: images/train\nval: images/val\nnames:\n  0: cat\n  1: dog\n"
    "download: https://example.com/data.zip\n",
    "v7": "train: ./images/train\nval: ./images/val\nnc: 2\nnames: [ 'cat', 'dog' ]\n",
    "lists": "train: train.txt\nval: val.txt\nnc: 2\nnames:\n- cat\n- dog\n",
    "Colab": "train: /content/datasets/data/images/train\nval: /content/datasets/data/images/val\n"
    "nc: 2\nnames: [cat, dog]\n",
    "Windows": "path: C:\\Users\\me\\data\ntrain: images\\train\nval: images\\val\n"
    "names: {0: cat, 1: dog}\n",
}


@pytest.mark.parametrize("kind", DATA_YAML)
def test_data_yaml(kind, tmp_path):
    folder = tmp_path / "data"
    for split in ("train", "val"):
        image(folder / "images" / split / f"{split}.jpg")
        write(folder / "labels" / split / f"{split}.txt", ROW + "\n")
        write(folder / f"{split}.txt", f"./images/{split}/{split}.jpg\n")
    write(folder / "data.yaml", DATA_YAML[kind])
    contents, _ = converted(folder, tmp_path / "out")
    assert boxes(contents) == {
        split: [(f"{split}/{split}.jpg", "cat", BOX)] for split in ("train", "val")
    }


ROBOFLOW_YAML = (
    "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\n"
    "names: ['cat', 'dog']\n\nroboflow:\n  workspace: me\n  project: cats\n  version: 1\n"
    "  license: CC BY 4.0\n  url: https://universe.roboflow.com/me/cats/dataset/1\n"
)


def test_roboflows_yolo(tmp_path):
    folder = tmp_path / "cats"
    for split in ("train", "valid", "test"):
        image(folder / split / "images" / f"{split}.jpg")
        write(folder / split / "labels" / f"{split}.txt", ROW)
    write(folder / "data.yaml", ROBOFLOW_YAML)
    write(folder / "README.roboflow.txt", "cats - v1")
    contents, notes = converted(folder, tmp_path / "out")
    assert {split: found[0][1:] for split, found in boxes(contents).items()} == dict.fromkeys(
        ("train", "val", "test"), ("cat", BOX)
    )
    assert notes == {}


def labelimg_yolo(folder):
    image(folder / "a.jpg")
    write(folder / "a.txt", ROW + "\n")
    write(folder / "classes.txt", "cat\ndog\n")


def label_studio_yolo(folder):
    image(folder / "images" / "a.jpg")
    write(folder / "labels" / "a.txt", ROW)
    write(folder / "classes.txt", "cat\ndog\n")
    write(folder / "notes.json", json.dumps({"categories": [{"id": 0, "name": "cat"}]}))


def roboflow_darknet(folder):
    image(folder / "train" / "a.jpg")
    write(folder / "train" / "a.txt", ROW)
    write(folder / "train" / "_darknet.labels", "cat\ndog\n")


def cvat_yolo(folder):
    image(folder / "obj_train_data" / "a.jpg")
    write(folder / "obj_train_data" / "a.txt", ROW)
    write(folder / "obj.names", "cat\ndog\n")
    write(folder / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\n")
    write(folder / "train.txt", "data/obj_train_data/a.jpg\n")


def labelimg_yolo_in_splits(folder):
    """LabelImg writes classes.txt next to the label files."""
    image(folder / "images" / "train" / "a.jpg")
    write(folder / "labels" / "train" / "a.txt", ROW)
    write(folder / "labels" / "train" / "classes.txt", "cat\ndog\n")


NAMES_ONLY = [
    labelimg_yolo,
    label_studio_yolo,
    roboflow_darknet,
    cvat_yolo,
    labelimg_yolo_in_splits,
]


@pytest.mark.parametrize("make", NAMES_ONLY)
def test_class_names_without_a_data_yaml(make, tmp_path):
    make(tmp_path / "data")
    contents, _ = converted(tmp_path / "data", tmp_path / "out")
    assert boxes(contents) == {"train": [("a.jpg", "cat", BOX)]}
    assert [c["name"] for c in contents["train"]["categories"]] == ["cat", "dog"]


def test_splits_of_darknet_files(tmp_path):
    for split in ("train", "valid", "test"):
        image(tmp_path / "data" / split / f"{split}.jpg")
        write(tmp_path / "data" / split / f"{split}.txt", ROW)
        write(tmp_path / "data" / split / "_darknet.labels", "cat\n")
    contents, _ = converted(tmp_path / "data", tmp_path / "out")
    assert list(contents) == ["train", "val", "test"]
    write(tmp_path / "data" / "test" / "_darknet.labels", "dog\n")
    with pytest.raises(UserError, match="other classes than .*; they must be the same"):
        converted(tmp_path / "data", tmp_path / "other")


def darknet(folder):
    for name in "abc":
        image(folder / "data" / "obj" / f"{name}.jpg")
        write(folder / "data" / "obj" / f"{name}.txt", ROW)
    write(folder / "data" / "obj.names", "cat\ndog\n")
    lines = "classes = 2\ntrain  = data/train.txt\nvalid  = data/test.txt\nnames = data/obj.names\n"
    write(folder / "data" / "obj.data", lines + "backup = backup/\n")
    write(folder / "data" / "train.txt", "data/obj/a.jpg\n")
    write(folder / "data" / "test.txt", "data/obj/b.jpg\n")


@pytest.mark.parametrize("source", [".", "data", "data/obj.data"])
def test_lists_of_darknet(source, tmp_path):
    """Their paths are relative to the folder in which darknet was started."""
    darknet(tmp_path / "in")
    contents, notes = converted(tmp_path / "in" / source, tmp_path / "out")
    assert boxes(contents) == {"train": [("a.jpg", "cat", BOX)], "val": [("b.jpg", "cat", BOX)]}
    assert notes.pop("paths that do not exist, looked up in the folder of the data set") == 2
    assert notes == {
        "images not taken (c.jpg)": 1,
        "label files without an image not taken (c.txt)": 1,
    }


LISTS = {
    "a byte order mark": ["\ufeff./images/train/a.jpg\r\n", "./images/val/b.jpg"],
    "of Colab": ["/content/data/images/train/a.jpg", "/content/data/images/val/b.jpg"],
    "of Windows": ["C:\\me\\images\\train\\a.jpg\r\n", "D:/data/images/val/b.jpg"],
}


@pytest.mark.parametrize("kind", LISTS)
def test_lists_of_images(kind, tmp_path):
    for split, name, line in zip(("train", "val"), "ab", LISTS[kind]):
        image(tmp_path / "in" / "images" / split / f"{name}.jpg")
        write(tmp_path / "in" / "labels" / split / f"{name}.txt", ROW)
        write(tmp_path / "in" / f"{split}.txt", line)
    write(tmp_path / "in" / "data.yaml", "train: train.txt\nval: val.txt\nnames: [cat, dog]\n")
    contents, _ = converted(tmp_path / "in", tmp_path / "out")
    assert {s: [name for name, *_ in found] for s, found in boxes(contents).items()} == {
        "train": ["train/a.jpg"],
        "val": ["val/b.jpg"],
    }


def test_another_split_is_not_taken_for_a_missing_one(tmp_path):
    for name in ("images/a", "images/b"):
        image(tmp_path / "in" / f"{name}.jpg")
    yaml = "train: images\nval: /content/data/val/images\nnames: [cat, dog]\n"
    write(tmp_path / "in" / "data.yaml", yaml)
    with pytest.raises(UserError, match="'val' is /content/data/val/images, but there is no"):
        converted(tmp_path / "in", tmp_path / "out")


def test_a_missing_test_split_is_a_note(tmp_path):
    image(tmp_path / "in" / "train" / "images" / "a.jpg")
    write(tmp_path / "in" / "train" / "labels" / "a.txt", ROW)
    yaml = "train: ../train/images\ntest: ../test/images\nnames: [cat, dog]\n"
    write(tmp_path / "in" / "data.yaml", yaml)
    contents, notes = converted(tmp_path / "in", tmp_path / "out")
    assert list(contents) == ["train"]
    assert notes == {"missing folder of 'test' passed over (../test/images)": 1}


@pytest.mark.parametrize(
    "files",
    [["my/data.yaml"], ["coco8.yaml", "args.yaml"], ["data.yaml", "x/data.yaml"], ["x.yml"]],
)
def test_which_yaml_describes_the_data_set(files, tmp_path):
    image(tmp_path / "in" / "my" / "images" / "a.jpg")
    write(tmp_path / "in" / "my" / "labels" / "a.txt", ROW)
    folder = "images" if files[0].startswith("my") else "my/images"
    write(tmp_path / "in" / files[0], f"train: {folder}\nnames: [cat, dog]\n")
    for name in files[1:]:
        write(tmp_path / "in" / name, "task: detect\nepochs: 100\n")
    assert boxes(converted(tmp_path / "in", tmp_path / "out")[0]) == {
        "train": [("a.jpg", "cat", BOX)]
    }


def test_several_yaml_files_of_data_sets(tmp_path):
    for name in "ab":
        image(tmp_path / "in" / name / "images" / "a.jpg")
        write(tmp_path / "in" / name / "data.yaml", "train: images\nnames: [cat]\n")
    with pytest.raises(UserError, match="has several data sets; name the file of one: .*a/data.y"):
        converted(tmp_path / "in", tmp_path / "out")


def test_oriented_boxes_are_polygons(tmp_path):
    image(tmp_path / "in" / "a.jpg")
    write(tmp_path / "in" / "a.txt", "0 0.2 0.1 0.5 0.2 0.4 0.5 0.1 0.4\n")
    write(tmp_path / "in" / "classes.txt", "cat\n")
    (found,) = converted(tmp_path / "in", tmp_path / "out")[0]["train"]["annotations"]
    assert found["segmentation"] == [[20, 8, 50, 16, 40, 40, 10, 32]]
    assert found["bbox"] == [10, 8, 40, 32]


def test_keypoints_of_ultralytics(tmp_path):
    points = " .5 .5 2 .4 .4 1"
    image(tmp_path / "in" / "images" / "a.jpg")
    write(tmp_path / "in" / "labels" / "a.txt", f"{ROW}{points}\n{ROW}")
    write(tmp_path / "in" / "data.yaml", "train: images\nnames: [cat]\nkpt_shape: [2, 3]\n")
    contents, notes = converted(tmp_path / "in", tmp_path / "out")
    assert boxes(contents) == {"train": [("a.jpg", "cat", BOX)]}
    assert notes == {
        "objects whose keypoints are left out": 1,
        "objects listed twice left out": 1,
    }
    # With two values each, which could be a polygon.
    write(tmp_path / "in" / "labels" / "a.txt", f"{ROW} .5 .5 .4 .4")
    with pytest.raises(UserError, match="line 1: has 9 numbers, not the 5 or 11 of 'kpt_shape'"):
        converted(tmp_path / "in", tmp_path / "other")


@pytest.mark.parametrize("make", [labelimg_yolo, label_studio_yolo])
def test_label_files_without_an_image_are_counted(make, tmp_path):
    make(tmp_path / "data")
    folder = (tmp_path / "data" / "labels").is_dir() and "labels/" or ""
    write(tmp_path / "data" / folder / "gone.txt", ROW)
    write(tmp_path / "data" / folder / "empty.txt", "")
    write(tmp_path / "data" / folder / "read_me.txt", "cats")
    _, notes = converted(tmp_path / "data", tmp_path / "out")
    named = ", ".join(f"{folder}{name}.txt" for name in ("empty", "gone"))
    assert notes[f"label files without an image not taken ({named})"] == 2
    assert notes[f"files ending in .txt not taken ({folder}read_me.txt)"] == 1


# ---- Pascal VOC ----


def test_labelimg(tmp_path):
    image(tmp_path / "data" / "a.jpg")
    write(
        tmp_path / "data" / "a.xml",
        "<annotation>\n\t<folder>data</folder>\n\t<filename>a.jpg</filename>\n"
        "\t<path>C:\\Users\\me\\data\\a.jpg</path>\n\t<source>\n"
        "\t\t<database>Unknown</database>\n\t</source>\n\t<size>\n\t\t<width>100</width>\n"
        "\t\t<height>80</height>\n\t\t<depth>3</depth>\n\t</size>\n"
        "\t<segmented>0</segmented>\n\t<object>\n\t\t<name>cat</name>\n"
        "\t\t<pose>Unspecified</pose>\n\t\t<truncated>0</truncated>\n"
        "\t\t<difficult>0</difficult>\n\t\t<bndbox>\n\t\t\t<xmin>11</xmin>\n"
        "\t\t\t<ymin>21</ymin>\n\t\t\t<xmax>40</xmax>\n\t\t\t<ymax>36</ymax>\n"
        "\t\t</bndbox>\n\t</object>\n</annotation>\n",
    )
    contents, notes = converted(tmp_path / "data", tmp_path / "out")
    assert boxes(contents) == {"train": [("a.jpg", "cat", BOX)]} and notes == {}


@pytest.mark.parametrize("with_lists", [False, True])
def test_the_same_subfolders_for_labels_and_images(with_lists, tmp_path):
    folder = tmp_path / "data"
    for part in ("day", "night"):
        image(folder / "JPEGImages" / part / "a.jpg")
        voc(folder / "Annotations" / part / "a.xml", [(part, 0, 11, 21, 40, 36)], "a.jpg")
    if with_lists:
        write(folder / "ImageSets" / "Main" / "train.txt", "night/a\n")
        write(folder / "ImageSets" / "Main" / "test.txt", "day/a\n")
    contents, notes = converted(folder, tmp_path / "out")
    day, night = ((f"{part}/a.jpg", part, BOX) for part in ("day", "night"))
    expected = {"train": [night], "test": [day]} if with_lists else {"train": [day, night]}
    assert boxes(contents) == expected and notes == {}


# ---- LabelMe ----


def shape_4(**others):
    """As of LabelMe 4."""
    points = [[10.0, 20.0], [40.0, 36.0]]
    return {"label": "cat", "points": points, "group_id": None, **others, "flags": {}}


def shape_5(**others):
    """As of LabelMe 5.2 to 5.11."""
    return {**shape_4(**others), "description": "", "mask": None}


LABELME = {
    "4.5.6": shape_4(shape_type="rectangle"),
    "5.0.1": shape_4(shape_type="rectangle"),
    "5.2.1": {**shape_5(shape_type="rectangle"), "description": None},
    "5.5.0": shape_5(shape_type="rectangle"),
    "5.11.0": {
        **shape_5(shape_type="oriented_rectangle"),
        "points": [[10.0, 20.0], [40.0, 20.0], [40.0, 36.0], [10.0, 36.0]],
    },
    "3.16.7": {  # with colors, and polygons without a type
        "label": "cat",
        "line_color": None,
        "fill_color": None,
        "points": [[10, 20], [40, 20], [40, 36], [10, 36]],
    },
}


@pytest.mark.parametrize("version", LABELME)
def test_labelme(version, tmp_path):
    image(tmp_path / "data" / "a.jpg")
    content = {"version": version, "flags": {}, "shapes": [LABELME[version]]}
    if version.startswith("3"):
        content |= {"lineColor": [0, 255, 0, 128], "fillColor": [255, 0, 0, 128]}
    content |= {"imagePath": "..\\photos\\a.jpg", "imageData": None}
    if not version.startswith("3"):
        content |= {"imageHeight": 80, "imageWidth": 100}
    write(tmp_path / "data" / "a.json", json.dumps(content, indent=2))
    contents, notes = converted(tmp_path / "data", tmp_path / "out")
    assert boxes(contents) == {"train": [("a.jpg", "cat", BOX)]} and notes == {}


# ---- COCO ----


def coco(annotation, images=None, **others):
    record = {"id": 1, "file_name": "a.jpg", "width": 100, "height": 80, **(images or {})}
    defaults = {"id": 1, "image_id": record["id"], "category_id": 1, "bbox": BOX}
    return {
        "categories": [{"id": 1, "name": "cat", "supercategory": ""}],
        "images": [record],
        "annotations": [{**defaults, **annotation}],
        **others,
    }


CORNERS = [10, 20, 40, 20, 40, 36, 10, 36]
EXPORTS = {
    "CVAT": coco(
        {
            "segmentation": [],
            "area": 480.0,
            "iscrowd": 0,
            "attributes": {"occluded": False, "rotation": 0.0},
        },
        {"license": 0, "flickr_url": "", "coco_url": "", "date_captured": 0},
        licenses=[{"name": "", "id": 0, "url": ""}],
        info={"contributor": "", "date_created": "", "description": "", "year": ""},
    ),
    "Label Studio": coco(
        {"id": 0, "category_id": 0, "segmentation": [], "ignore": 0, "iscrowd": 0, "area": 480.0},
        {"id": 0},
        categories=[{"id": 0, "name": "cat"}],
        info={"year": 2024, "version": "1.0", "contributor": "Label Studio"},
    ),
    "VIA": coco(
        {
            "segmentation": [CORNERS],
            "area": 480,
            "iscrowd": 0,
        },
        {"license": 0, "flickr_url": "", "coco_url": "", "date_captured": ""},
        categories=[{"supercategory": "type", "id": 1, "name": "cat"}],
        info={"year": 2019, "version": "1.0", "description": "VIA project exported to COCO format"},
        licenses=[{"id": 0, "name": "Unknown License", "url": ""}],
    ),
    "Datumaro": coco(
        {"segmentation": [CORNERS], "area": 480.0, "iscrowd": 0, "attributes": {"is_crowd": False}},
        {"license": 0, "flickr_url": "", "coco_url": "", "date_captured": 0},
        licenses=[{"name": "", "id": 0, "url": ""}],
    ),
    "Roboflow": coco(
        {"id": 0, "segmentation": [], "area": 480, "iscrowd": 0},
        {"id": 0, "license": 1, "date_captured": "2023-06-19T12:13:11+00:00"},
        categories=[
            {"id": 0, "name": "cats", "supercategory": "none"},
            {"id": 1, "name": "cat", "supercategory": "cats"},
        ],
    ),
}


NAMES = [
    "images\\a.jpg",
    "..\\..\\label-studio\\data\\media\\upload\\1\\a.jpg",
    "/data/upload/1/a.jpg",
    "/data/local-files/?d=photos/a.jpg",
    "http://localhost:8080/data/upload/1/a.jpg",
    "C:\\me\\images\\a.jpg",
    "%61.jpg",
    "../images/a.jpg",
]


@pytest.mark.parametrize("with_images", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_image_names_of_another_machine(name, with_images, tmp_path):
    image(tmp_path / "export" / "images" / "a.jpg")
    content = coco({"segmentation": [], "iscrowd": 0}, {"file_name": name})
    file = write(tmp_path / "export" / "result.json", json.dumps(content))
    folders = {"images": [str(tmp_path / "export" / "images")]} if with_images else {}
    contents, notes = converted(file, tmp_path / "out", **folders)
    (found,) = boxes(contents)["train"]
    assert found[0].split("/")[-1] == "a.jpg" and found[1:] == ("cat", BOX)
    looked_up = "image names of another machine looked up in the folder of the images"
    assert notes == ({} if name.startswith("images") and not with_images else {looked_up: 1})


def test_two_names_that_end_in_one(tmp_path):
    image(tmp_path / "images" / "a.jpg")
    content = coco({}, {"file_name": "x/a.jpg"})
    content["images"].append({**content["images"][0], "id": 2, "file_name": "y/a.jpg"})
    file = write(tmp_path / "result.json", json.dumps(content))
    with pytest.raises(UserError, match="image 2: is .*a.jpg, as is image 1; each once"):
        converted(file, tmp_path / "out", images=[str(tmp_path / "images")])


RUNS = {"counts": [820, 16, 64, 16, 7084], "size": [80, 100]}  # x 10 and 11, y 20 to 35
REPAIRS = {
    "ids that are texts read as numbers": ({"id": "7", "image_id": "1"}, {"id": "1"}, BOX, 3),
    "image sizes that are missing read from the images": (
        {},
        {"width": 0, "height": 0},  # as of VIA, if an image was not opened
        BOX,
        1,
    ),
    "polygons that are not in a list wrapped in one": ({"segmentation": CORNERS}, {}, BOX, 1),
    "boxes that are missing computed from masks": (
        {"bbox": [], "segmentation": [CORNERS, [50, 20, 60, 20, 60, 30]]},
        {},
        [10, 20, 50, 16],
        1,
    ),
    "boxes that are missing computed from masks ": (
        {"bbox": None, "segmentation": RUNS},
        {},
        [10, 20, 2, 16],
        1,
    ),
}


@pytest.mark.parametrize("what", REPAIRS)
def test_repairs(what, tmp_path):
    annotation, record, box, number = REPAIRS[what]
    image(tmp_path / "images" / "a.jpg")
    file = write(tmp_path / "x.json", json.dumps(coco({"iscrowd": 0, **annotation}, record)))
    before = file.read_text()
    contents, notes = converted(file, tmp_path / "out")
    assert boxes(contents) == {"train": [("a.jpg", "cat", box)]}
    assert notes == {what.strip(): number} and file.read_text() == before
    (found,) = contents["train"]["annotations"]
    assert type(found["id"]) is type(found["image_id"]) is int
    assert type(found.get("segmentation", [])) is dict or all(
        len(polygon) >= 6 for polygon in found.get("segmentation", [])
    )
    assert [contents["train"]["images"][0][key] for key in ("width", "height")] == [100, 80]


def test_repeated_annotation_ids_and_a_byte_order_mark(tmp_path):
    image(tmp_path / "images" / "a.jpg")
    content = coco({"iscrowd": 0})
    content["annotations"].append({**content["annotations"][0], "bbox": [1, 2, 3, 4]})
    file = write(tmp_path / "x.json", "\ufeff" + json.dumps(content))
    contents, notes = converted(file, tmp_path / "out")
    assert boxes(contents) == {"train": [("a.jpg", "cat", BOX), ("a.jpg", "cat", [1, 2, 3, 4])]}
    assert [a["id"] for a in contents["train"]["annotations"]] == [1, 2]
    assert notes == {"annotation ids changed, as another has the same": 1}


def test_errors_name_the_file_itself(tmp_path):
    image(tmp_path / "images" / "a.jpg")
    file = write(tmp_path / "x.json", json.dumps(coco({"id": "1", "category_id": 8})))
    with pytest.raises(UserError) as error:
        converted(file, tmp_path / "out")
    assert str(error.value).startswith(f"{file}: 1 annotations are of a category that is not in")


def test_masks_of_another_size_are_a_note(tmp_path):
    image(tmp_path / "images" / "a.jpg")
    runs = {**RUNS, "size": [100, 80]}
    file = write(tmp_path / "x.json", json.dumps(coco({"iscrowd": 0, "segmentation": runs})))
    notes = converted(file, tmp_path / "out")[1]
    assert notes == {"masks that cannot be used, in part or at all": 1}


IMAGE = {"id": 1, "file_name": "a.jpg", "width": 100, "height": 80}
NOT_COCO = [
    {"images": {"id": 1}, "annotations": 3, "categories": None},
    {"images": [1, {"id": {}, "file_name": 5}], "annotations": [[]], "categories": [7]},
    {"images": [IMAGE], "annotations": [{"id": [], "image_id": {}, "segmentation": [CORNERS]}]},
    {"images": [IMAGE], "annotations": [{"id": 1, "segmentation": {"counts": "x"}}]},
    {"images": [IMAGE], "annotations": [{"id": 1, "segmentation": [[10**400] * 6]}]},
    {"images": [{"id": "1" * 30, "file_name": "a\0.jpg"}], "annotations": []},
    {"images": [{"id": 1, "file_name": "a" * 5000}], "annotations": []},
]


@pytest.mark.parametrize("content", NOT_COCO)
def test_records_that_cannot_be_repaired(content, tmp_path):
    image(tmp_path / "images" / "a.jpg")
    categories = {"categories": [{"id": 1, "name": "cat"}]}
    file = write(tmp_path / "x.json", json.dumps({**categories, **content}))
    with pytest.raises(UserError) as error:
        converted(file, tmp_path / "out", images=[str(tmp_path / "images")])
    assert str(error.value).startswith(f"{file}: ") and len(str(error.value).splitlines()) == 1


def coco_file(folder, file, picture, name="a.jpg"):
    image(folder / picture)
    write(folder / file, json.dumps(coco({"iscrowd": 0}, {"file_name": name})))


FOLDERS = {
    "CVAT": {"train": ("annotations/instances_default.json", "images/a.jpg")},
    "CVAT, with subsets": {
        "train": ("annotations/instances_Train.json", "images/Train/a.jpg"),
        "val": ("annotations/instances_Validation.json", "images/Validation/a.jpg"),
    },
    "Datumaro": {
        "train": ("annotations/instances_train.json", "images/train/a.jpg"),
        "test": ("annotations/instances_test.json", "images/test/a.jpg"),
    },
    "COCO itself": {
        "train": ("annotations/instances_train2017.json", "train2017/a.jpg"),
        "val": ("annotations/instances_val2017.json", "val2017/a.jpg"),
    },
    "Label Studio": {"train": ("result.json", "images/a.jpg", "images/a.jpg")},
    "Roboflow, without splits": {"train": ("_annotations.coco.json", "a.jpg")},
    "Roboflow, from above": {
        "train": ("cats.v1/train/_annotations.coco.json", "cats.v1/train/a.jpg"),
        "val": ("cats.v1/valid/_annotations.coco.json", "cats.v1/valid/a.jpg"),
    },
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_folders_of_exports(kind, tmp_path):
    for files in FOLDERS[kind].values():
        coco_file(tmp_path / "in", *files)
    found = convert([str(tmp_path / "in")], str(tmp_path / "out"))
    assert found.source == "coco" and list(found.data.splits) == list(FOLDERS[kind])
    for split, (_, picture, *_) in FOLDERS[kind].items():
        (record,) = json.loads((tmp_path / "out" / f"{split}.json").read_text())["images"]
        assert (tmp_path / "in" / picture).samefile(f"{found.root}/{record['file_name']}")


def test_folders_that_are_not_clear(tmp_path):
    coco_file(tmp_path / "in", "a.json", "images/a.jpg")
    coco_file(tmp_path / "in", "b.json", "images/a.jpg")
    with pytest.raises(UserError, match="several files of COCO for train: .*a.json, .*b.json; nam"):
        converted(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / "b.json").unlink()
    (tmp_path / "in" / "images").rename(tmp_path / "in" / "photos")
    with pytest.raises(UserError, match="a.json: name the folder of the images with --images"):
        converted(tmp_path / "in", tmp_path / "out")


OTHERS = {
    "datumaro.json": {"categories": {"label": {"labels": []}}, "items": [{"id": "a"}]},
    "label_studio.json": [{"id": 1, "annotations": [{"result": []}], "data": {"image": "a.jpg"}}],
    "results.json": [{"image_id": 1, "category_id": 1, "bbox": BOX, "score": 0.5}],
    "createml.json": [{"image": "a.jpg", "annotations": []}],
    "export.ndjson": {},
    "labels.csv": {},
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_kinds_are_refused_in_one_line(name, tmp_path):
    image(tmp_path / "in" / "a.jpg")
    file = write(tmp_path / "in" / name, json.dumps(OTHERS[name]))
    with pytest.raises(UserError, match="is not a file of COCO, LabelMe, VIA 1 or 2,") as error:
        converted(file, tmp_path / "out")
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(UserError, match="in has an unknown format: it has no data.yaml") as error:
        converted(tmp_path / "in", tmp_path / "out")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("tool", EXPORTS)
def test_coco_of_other_tools(tool, tmp_path):
    image(tmp_path / "images" / "a.jpg")
    file = write(tmp_path / "result.json", json.dumps(EXPORTS[tool]))
    contents, _ = converted(file, tmp_path / "out", images=[str(tmp_path / "images")])
    assert boxes(contents) == {"train": [("a.jpg", "cat", BOX)]}
    assert len(contents["train"]["categories"]) == 1


@pytest.mark.parametrize("target", ["coco", "yolo"])
def test_an_unzipped_export_of_roboflow(tmp_path, target):
    for name in ("train", "valid", "test"):
        image(tmp_path / "cats" / name / "a.jpg")
        write(tmp_path / "cats" / name / "_annotations.coco.json", json.dumps(EXPORTS["Roboflow"]))
    found = convert([str(tmp_path / "cats")], str(tmp_path / "out"), target=target)
    assert found.data.names == ["cat"] and list(found.data.splits) == ["train", "val", "test"]
    assert found.data.notes["categories that only group others left out (cats)"] == 1
    assert [p.objects[0].box for p in found.data.pictures()] == [tuple(BOX)] * 3
