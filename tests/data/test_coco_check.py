"""What is wrong with an annotation file stops, with the data set and the file named."""

import json
import os

import pytest

from rsb_d2 import UserError
from tests.helpers.data.bad_input import (
    RLE_OF_OTHER_SIZE,
    Case,
    check_stop,
    content,
    edited,
    opts,
    put,
    put_all,
    remove,
    text,
)
from tests.helpers.data.coco_files import coco_content, edit, register
from tests.helpers.runs.programs import check_line


def replaced(key, value):
    return lambda content: content.update({key: value})


def without(key):
    return lambda content: content.pop(key)


def item(key, index, **fields):
    return lambda content: content[key][index].update(fields)


def field_removed(key, index, field):
    return lambda content: content[key][index].pop(field)


ERRORS = {
    "no images key": (without("images"), "there is no key 'images'"),
    "no annotations key": (without("annotations"), "there is no key 'annotations'"),
    "no categories key": (without("categories"), "there is no key 'categories'"),
    "images not a list": (replaced("images", {}), "'images' must be a list of objects"),
    "annotation not an object": (
        replaced("annotations", [1]),
        "'annotations' must be a list of objects",
    ),
    "no categories": (replaced("categories", []), "'categories' is empty"),
    "no images": (replaced("images", []), "'images' is empty"),
    "category id twice": (
        item("categories", 0, id=3),
        r"1 ids in 'categories' are there more than once \(3\)",
    ),
    "category name twice": (
        item("categories", 0, name="cat"),
        r"1 category names are there more than once \(cat\)",
    ),
    "category without name": (
        field_removed("categories", 0, "name"),
        r"1 categories have no 'name' that is a text \(ids: 7\)",
    ),
    "category id as text": (
        item("categories", 0, id="7"),
        r"1 of 'categories' have no 'id' that is an integer",
    ),
    "image id twice": (
        item("images", 1, id=10),
        r"1 ids in 'images' are there more than once \(10\)",
    ),
    "image id as text": (
        item("images", 1, id="20"),
        r"1 of 'images' have no 'id' that is an integer.*\(positions in the list: 1\)",
    ),
    "image without width": (
        field_removed("images", 1, "width"),
        r"1 images have no 'height' and 'width' that are integers above 0 \(ids: 20\)",
    ),
    "image of height 0": (item("images", 1, height=0), r"'height' and 'width'.*\(ids: 20\)"),
    "image width as text": (item("images", 1, width="100"), r"'height' and 'width'.*\(ids: 20\)"),
    "image without file name": (
        field_removed("images", 1, "file_name"),
        r"1 images have no 'file_name' that is a text \(ids: 20\)",
    ),
    "file name out of the folder": (
        item("images", 1, file_name="a/../../x.jpg"),
        r"1 images have a 'file_name' that leads out of the image folder.*\(ids: 20\)",
    ),
    "absolute file name": (
        item("images", 1, file_name="/etc/passwd"),
        r"1 images have a 'file_name' that leads out of the image folder.*\(ids: 20\)",
    ),
    "image file missing": (
        item("images", 1, file_name="nowhere.jpg"),
        r"1 of 3 image files are not in .*images \(nowhere.jpg\)$",
    ),
    "annotation id twice": (
        edit(0, id=2),
        r"1 ids in 'annotations' are there more than once \(2\)",
    ),
    "annotation without id": (
        field_removed("annotations", 3, "id"),
        r"1 of 'annotations' have no 'id' that is an integer.*\(positions in the list: 3\)",
    ),
    "unknown category": (
        edit(0, category_id=5),
        r"1 annotations are of a category that is not in 'categories' \(ids 5\) \(ids: 1\)",
    ),
    "category of annotation as text": (
        edit(0, category_id="7"),
        r"1 annotations have no 'category_id' that is an integer \(ids: 1\)",
    ),
    "image of annotation as text": (
        edit(0, image_id="10"),
        r"1 annotations have no 'image_id' that is an integer \(ids: 1\)",
    ),
    "no box": (field_removed("annotations", 0, "bbox"), r"have no 'bbox' that is .*\(ids: 1\)"),
    "box as text": (edit(0, bbox="1 2 3 4"), r"have no 'bbox' that is .*\(ids: 1\)"),
    "box of text": (edit(0, bbox=["1", "2", "3", "4"]), r"have no 'bbox' that is .*\(ids: 1\)"),
    "box of three": (edit(0, bbox=[1, 2, 3]), r"have no 'bbox' that is .*\(ids: 1\)"),
    "iscrowd as text": (edit(0, iscrowd="0"), r"'iscrowd' that is not 0 or 1 \(ids: 1\)"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_error_names_data_set_file_and_first_ids(case, write_coco):
    mistake, message = ERRORS[case]
    content = coco_content()
    mistake(content)
    entry = write_coco(content)
    with pytest.raises(UserError, match=message) as error:
        register(entry)
    assert str(error.value).startswith(f"data set mine: {entry[1]}: ")
    assert len(str(error.value).splitlines()) <= 2


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "is not valid JSON: .*line 1 column 2"),
        ("", "is not valid JSON"),
        ("[]", "at the top there must be an object with the keys .*, not a list"),
        ("\ufeff{}", "is not valid JSON: Unexpected UTF-8 BOM"),
    ],
)
def test_broken_json(text, message, write_coco):
    with pytest.raises(UserError, match=message):
        register(write_coco(text))


def test_file_that_is_not_text(write_coco):
    entry = write_coco("")
    with open(entry[1], "wb") as f:
        f.write(json.dumps(coco_content()).encode("utf-16"))
    with pytest.raises(UserError, match="is not UTF-8 text"):
        register(entry)


def test_missing_files(write_coco, tmp_path, images):
    with pytest.raises(UserError, match="nowhere.json: there is no such annotation file"):
        register(["a", str(tmp_path / "nowhere.json"), str(images)])
    with pytest.raises(UserError, match="cannot be read: .*directory"):
        register(["b", str(images), str(images)])
    name, json_file, _ = write_coco(coco_content())
    with pytest.raises(UserError, match=r"3 of 3 image files are not in .*is it the right image"):
        register([name, json_file, str(tmp_path / "other")])


def test_images_in_subfolders(write_coco, images):
    (images / "deep" / "er").mkdir(parents=True)
    (images / "10.jpg").rename(images / "deep" / "er" / "10.jpg")
    content = coco_content()
    content["images"][0]["file_name"] = "deep/er/10.jpg"
    assert os.path.isfile(register(write_coco(content))[0]["file_name"])


NESTED = "[" * 100_000
LONG = json.dumps(content()).replace('"width": 96', '"width": ' + "9" * 5000, 1)


STOPS = [
    Case("JSON cut short", text(json.dumps(content())[:500]), "mine: .*train.json: is not valid"),
    Case("JSON of zero bytes", text(" "), "train.json: is not valid JSON"),
    Case("JSON not in UTF-8", text('{"é": 1}', "latin-1"), "is not UTF-8 text; save it"),
    Case("JSON that is a list", text("[1, 2]"), "at the top there must be an object .*not a list"),
    Case("JSON nested deeply", text(NESTED), "nested too deeply"),
    Case("JSON with a number of 5000 digits", text(LONG), "is not valid JSON: .*4300 digits"),
    Case("a key that is not there", edited(lambda c: c.pop("images") and None), "no key 'images'"),
    Case("annotations not a list", edited(lambda c: {**c, "annotations": {}}), "must be a list"),
    Case("images that are texts", edited(lambda c: {**c, "images": ["a.jpg"]}), "list of objects"),
    Case("an image id that is a text", put("images", id="1"), "no 'id' that is an integer"),
    Case("an image id of 70 bits", put("images", id=2**70), "of at most 64 bits"),
    Case("duplicate image ids", put("images", id=2), r"1 ids in 'images' .*more than once \(2\)"),
    Case("duplicate annotation ids", put("annotations", id=2), "1 ids in 'annotations'.*once"),
    Case("duplicate category ids", put("categories", id=3), "1 ids in 'categories' .*once"),
    Case("duplicate category names", put("categories", name="cat"), "category names .*once"),
    Case("a category without a name", put("categories", name=""), "no 'name' that is a text"),
    Case("a category of half a letter", put("categories", name="\ud83d"), "'name' that is a text"),
    Case("no images", edited(lambda c: {**c, "images": []}), "'images' is empty"),
    Case("no categories", edited(lambda c: {**c, "categories": []}), "'categories' is empty"),
    Case("width 0", put("images", width=0), "'height' and 'width' that are integers above 0"),
    Case("height a text", put("images", height="64"), "'height' and 'width' that are integers"),
    Case("width of 40 bits", put("images", width=2**40), "'height' and 'width' that are"),
    Case("unknown category", put("annotations", category_id=7), r"not in 'categories' \(ids 7\)"),
    Case("category a text", put("annotations", category_id="cat"), "no 'category_id' that is an"),
    Case("box of three numbers", put("annotations", bbox=[1, 2, 3]), r"\[x, y, width, height\]"),
    Case("box of texts", put("annotations", bbox=list("1234")), r"\[x, y, width, height\], four"),
    Case("box of 400 digits", put("annotations", bbox=[10**400, 1, 2, 3]), "four numbers"),
    Case("iscrowd a text", put("annotations", iscrowd="no"), "'iscrowd' that is not 0 or 1"),
    Case("annotation file missing", remove("train.json"), "there is no such annotation file"),
    Case(
        "annotations a folder",
        lambda d: opts(
            "DATASETS.COCO_JSON", "[['mine', 'train', 'train'], ['mine_val', 'val.json', 'val']]"
        )(d),
        "mine: .*cannot be read: .*directory",
    ),
    Case("image missing", remove("train/4.jpg"), r"1 of 4 image files are not in .*train \(4.jpg"),
    Case("image folder missing", remove("train"), "4 of 4 image files .*right image folder"),
    Case(
        "file name that leaves the folder",
        put("images", file_name="../val/4.jpg"),
        "leads out of the image folder; write it relative to the folder, without '..'",
    ),
    Case(
        "file name hidden out of the folder",
        put("images", file_name="x/../../val/4.jpg"),
        "leads out of the image folder",
    ),
    Case("absolute file name", put("images", file_name="/etc/passwd"), "out of the image folder"),
    Case("file name with a NUL", put("images", file_name="a\0b.jpg"), r"a\\x00b.jpg"),
    Case("file name of two lines", put("images", file_name="a\nb.jpg"), r"\(a\\nb.jpg\)"),
    Case("file name that is no text", put("images", file_name="\ud800/x.jpg"), r"\\ud800/x.jpg"),
    Case(
        "masks all of two points",
        lambda d: (
            put_all("annotations", segmentation=[[1, 1, 9, 9]])(d)
            or opts("MODEL.MASK_ON", "True")(d)
        ),
        "no annotation has a mask that can be used .*polygons",
    ),
    Case(
        "masks all RLE of another size",
        lambda d: (
            put_all("annotations", **RLE_OF_OTHER_SIZE)(d) or opts("MODEL.MASK_ON", "True")(d)
        ),
        "no annotation has a mask that can be used",
    ),
]


@pytest.mark.parametrize("case", STOPS, ids=str)
def test_train_net_stops_at_once(case, little_data, train_net):
    check_stop(case, little_data, train_net)


def test_no_room_for_the_corrected_copy(little_data, train_net, tmp_path):
    put("annotations", area=None)(little_data)
    (tmp_path / "cache").write_text("a file in the place of the folder")
    check_line(train_net(), "mine: .*train.json: needs a corrected copy, .*FVCORE_CACHE")
