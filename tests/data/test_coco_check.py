"""What is wrong with an annotation file stops, with the data set and the file named."""

import json

import pytest

from rsb_d2 import UserError
from tests.helpers.data.bad_input import (
    put,
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
    "annotation not an object": (replaced("annotations", [1]), "'annotations' must be a list of"),
    "no categories": (replaced("categories", []), "'categories' is empty"),
    "no images": (replaced("images", []), "'images' is empty"),
    "category id twice": (item("categories", 0, id=3), r"'categories' .* more than once \(3\)"),
    "category name twice": (item("categories", 0, name="cat"), r"names .* more than once \(cat\)"),
    "category without name": (field_removed("categories", 0, "name"), r"'name' .*\(ids: 7\)"),
    "category id as text": (item("categories", 0, id="7"), "'categories' have no 'id' that is an"),
    "category of half a letter": (item("categories", 0, name="\ud83d"), "'name' that is a text"),
    "image id twice": (item("images", 1, id=10), r"'images' are there more than once \(10\)"),
    "image id as text": (item("images", 1, id="20"), r"no 'id' .*\(positions in the list: 1\)"),
    "image id of 70 bits": (item("images", 1, id=2**70), "of at most 64 bits"),
    "image without width": (field_removed("images", 1, "width"), r"integers above 0 \(ids: 20\)"),
    "image of height 0": (item("images", 1, height=0), r"'height' and 'width'.*\(ids: 20\)"),
    "width of 40 bits": (item("images", 1, width=2**40), "'height' and 'width' that are"),
    "image without file name": (field_removed("images", 1, "file_name"), r"a text \(ids: 20\)"),
    "out of the folder": (item("images", 1, file_name="a/../../x.jpg"), r"leads out .*ids: 20"),
    "absolute file name": (item("images", 1, file_name="/etc/passwd"), r"leads out .*ids: 20"),
    "image file missing": (item("images", 1, file_name="no.jpg"), r"1 of 3 image .*\(no.jpg\)$"),
    "file name with a NUL": (item("images", 1, file_name="a\0b.jpg"), r"a\\x00b.jpg"),
    "file name that is no text": (item("images", 1, file_name="\ud800/x.jpg"), r"\\ud800/x.jpg"),
    "annotation id twice": (edit(0, id=2), r"'annotations' are there more than once \(2\)"),
    "annotation without id": (field_removed("annotations", 3, "id"), r"\(positions .*: 3\)"),
    "annotation id of 64 bits": (edit(0, id=2**63), "of at most 64 bits"),
    "unknown category": (edit(0, category_id=5), r"not in 'categories' \(ids 5\) \(ids: 1\)"),
    "category of annotation as text": (edit(0, category_id="7"), r"an integer \(ids: 1\)"),
    "image of annotation as text": (edit(0, image_id="10"), r"an integer \(ids: 1\)"),
    "image id a fraction": (edit(0, image_id=10.0), r"no 'image_id' that is an integer"),
    "no box": (field_removed("annotations", 0, "bbox"), r"have no 'bbox' that is .*\(ids: 1\)"),
    "box as text": (edit(0, bbox="1 2 3 4"), r"have no 'bbox' that is .*\(ids: 1\)"),
    "box of text": (edit(0, bbox=["1", "2", "3", "4"]), r"have no 'bbox' that is .*\(ids: 1\)"),
    "box of three": (edit(0, bbox=[1, 2, 3]), r"have no 'bbox' that is .*\(ids: 1\)"),
    "box of 400 digits": (edit(0, bbox=[10**400, 1, 2, 3]), "four numbers"),
    "box of booleans": (edit(0, bbox=[True, 1, 2, 3]), "four numbers"),
    "iscrowd as text": (edit(0, iscrowd="0"), r"'iscrowd' that is not 0 or 1 \(ids: 1\)"),
    "iscrowd of 2": (edit(0, iscrowd=2), r"'iscrowd' that is not 0 or 1 \(ids: 1\)"),
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
        ("[" * 100_000, "nested too deeply"),
        ('{"images": ' + "9" * 5000 + "}", "is not valid JSON: .*4300 digits"),
    ],
)
def test_broken_json(text, message, write_coco):
    with pytest.raises(UserError, match=message):
        register(write_coco(text))


def test_unreadable_and_missing_files(write_coco, tmp_path, images):
    with pytest.raises(UserError, match="nowhere.json: there is no such annotation file"):
        register(["a", str(tmp_path / "nowhere.json"), str(images)])
    with pytest.raises(UserError, match="cannot be read: .*directory"):
        register(["b", str(images), str(images)])
    name, json_file, _ = write_coco("")
    with open(json_file, "wb") as f:
        f.write(json.dumps(coco_content()).encode("utf-16"))
    with pytest.raises(UserError, match="is not UTF-8 text"):
        register([name, json_file, str(images)])
    name, json_file, _ = write_coco(coco_content())
    with pytest.raises(UserError, match=r"3 of 3 image files are not in .*is it the right image"):
        register(["c", json_file, str(tmp_path / "other")])


def test_no_room_for_the_corrected_copy(little_data, train_net, tmp_path):
    put("annotations", area=None)(little_data)
    (tmp_path / "cache").write_text("a file in the place of the folder")
    check_line(train_net(), "mine: .*train.json: needs a corrected copy, .*FVCORE_CACHE")
