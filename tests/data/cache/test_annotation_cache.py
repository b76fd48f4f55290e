"""The file of the cache: used while it fits, and made anew otherwise."""

import json
import os
import re

import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json

from rsb_d2 import UserError
from rsb_d2.data.cache import checked
from tests.helpers.data.coco_content import make_content, write_data_set
from tests.helpers.data.starts import is_read, start, the_file


def test_later_starts_read_no_json_and_say_the_same(files, folder, caplog, monkeypatch):
    content = json.loads(open(files[0]).read())
    content["annotations"][0]["bbox"][2] = 0
    content["annotations"][1]["bbox"] = [60, 5, 30, 9]
    content["annotations"][2].pop("area")
    for image in content["images"]:
        image.update(width=80)
    open(files[0], "w").write(json.dumps(content))
    records, lines = start(files, folder, caplog)
    assert is_read(lines)
    said = [line for line in lines if not line.startswith("Reading ")]
    assert any("dropped 1 of 120 annotations: 1 with a box of no area" in line for line in said)
    assert any("boxes reach beyond their image" in line for line in said)
    first = list(records)

    monkeypatch.setattr(checked, "AnnotationFile", lambda *_: pytest.fail("was read again"))
    records, lines = start(files, folder, caplog)
    assert lines == said and list(records) == first
    copy = MetadataCatalog.get("mine").json_file
    assert first == load_coco_json(copy, files[1], "of_the_copy")


def edit_in_place(files, folder):
    """Of the same size, and with the time of before."""
    stat = os.stat(files[0])
    text = open(files[0]).read()
    with open(files[0], "r+") as f:
        f.write(text.replace('"class 90"', '"class 91"'))
    os.utime(files[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))


def add_an_image(files, folder):
    content = json.loads(open(files[0]).read())
    content["images"].append(dict(content["images"][0], id=10**7))
    open(files[0], "w").write(json.dumps(content))


def touch(files, folder):
    os.utime(files[0], (1, 1))


def cut(files, folder):
    os.truncate(the_file(folder), the_file(folder).stat().st_size // 2)


def cut_at_the_end(files, folder):
    os.truncate(the_file(folder), the_file(folder).stat().st_size - 1)


def empty(files, folder):
    the_file(folder).write_bytes(b"")


def replace_by_text(files, folder):
    the_file(folder).write_bytes(b"<html>" * 10_000)


def replace_by_another_safetensors(files, folder):
    import numpy as np
    from safetensors.numpy import save_file

    save_file({"records": np.zeros(9)}, the_file(folder))


def flip_a_column(files, folder):
    content = bytearray(the_file(folder).read_bytes())
    content[-2000] ^= 255
    the_file(folder).write_bytes(content)


def flip_the_header(files, folder):
    content = the_file(folder).read_bytes()
    assert content.count(b'"category_ids"') == 1
    the_file(folder).write_bytes(content.replace(b'"category_ids"', b'"category_idz"'))


BROKEN = {
    edit_in_place: "was made before .*mine.json changed",
    add_an_image: "was made before .*mine.json changed",
    touch: "was made before .*mine.json changed",
    cut: "is damaged",
    cut_at_the_end: "is damaged",
    empty: "is empty",
    replace_by_text: "is damaged",
    replace_by_another_safetensors: "is of another program or version",
    flip_a_column: "is damaged",
    flip_the_header: "is damaged",
}


@pytest.mark.parametrize("what", BROKEN, ids=lambda f: f.__name__)
def test_what_does_not_fit_is_made_anew_with_a_line(what, files, folder, caplog):
    start(files, folder, caplog)
    what(files, folder)
    records, lines = start(files, folder, caplog)
    said = [line for line in lines if "it is made anew" in line]
    assert len(said) == 1 and re.search(f"safetensors {BROKEN[what]}", said[0])
    MetadataCatalog.remove("mine")
    assert list(records) == load_coco_json(*files, "mine")
    assert not is_read(start(files, folder, caplog)[1])


def test_file_of_another_annotation_file_is_not_taken(files, folder, tmp_path, caplog):
    start(files, folder, caplog)
    mine = the_file(folder)
    (tmp_path / "other").mkdir()
    moved = write_data_set(tmp_path / "other", make_content(3))
    start(moved, tmp_path / "cache2", caplog)
    mine.write_bytes(the_file(tmp_path / "cache2").read_bytes())
    records, lines = start(files, folder, caplog)
    assert any("is of other files or of another version: it is made anew" in line for line in lines)
    assert len(records) == 30 and records[0]["file_name"].startswith(files[1])


def test_copied_annotation_file_of_the_same_content_fits(files, folder, caplog):
    start(files, folder, caplog)
    stat, text = os.stat(files[0]), open(files[0]).read()
    os.remove(files[0])
    open(files[0], "w").write(text)
    os.utime(files[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert not is_read(start(files, folder, caplog)[1])


def test_damaged_record_is_found_when_it_is_read(files, folder, caplog):
    expected = list(start(files, folder, caplog)[0])
    content = bytearray(the_file(folder).read_bytes())
    content[4096 + 300] ^= 1  # in the first records
    the_file(folder).write_bytes(content)
    records, lines = start(files, folder, caplog)
    assert not is_read(lines)
    caplog.clear()
    assert list(records) == expected
    lines = [r.getMessage() for r in caplog.records]
    assert sum("is damaged: it is made anew" in line for line in lines) == 1
    assert list(start(files, folder, caplog)[0]) == expected


def test_image_that_went_missing_is_named_at_a_later_start(files, folder, caplog):
    name = make_content()["images"][4]["file_name"]
    start(files, folder, caplog)
    open(os.path.join(files[1], "another.jpg"), "w").close()
    assert not is_read(start(files, folder, caplog)[1])  # looks at the folder, not at the JSON
    os.remove(os.path.join(files[1], name))
    for _ in range(2):
        with pytest.raises(UserError, match=f"1 of 30 image files are not in .*{name}"):
            start(files, folder, caplog)
    open(os.path.join(files[1], name), "w").close()
    assert not is_read(start(files, folder, caplog)[1])


def test_corrected_copy_that_is_gone_is_made_anew(files, folder, tmp_path, caplog):
    content = make_content()
    content["annotations"][0].pop("iscrowd")
    files = write_data_set(tmp_path, content)
    start(files, folder, caplog)
    copy = MetadataCatalog.get("mine").json_file
    os.remove(copy)
    lines = start(files, folder, caplog)[1]
    assert any(f"lacks the corrected copy {copy}: it is made anew" in line for line in lines)
    assert os.path.isfile(MetadataCatalog.get("mine").json_file)


def test_mistakes_are_found_in_a_file_of_many_chunks(tmp_path, folder, caplog, monkeypatch):
    from rsb_d2.data.cache import annotation_file

    monkeypatch.setattr(annotation_file, "CHUNK", 7)
    monkeypatch.setattr(checked, "CHUNK", 7)
    content = make_content()
    for i in (3, 50, 119):
        content["annotations"][i]["category_id"] = 5
    ids = [content["annotations"][i]["id"] for i in (3, 50, 119)]
    with pytest.raises(
        UserError, match=rf"3 annotations are of a category .*\(ids: {ids[0]}, {ids[1]}, {ids[2]}\)"
    ):
        start(write_data_set(tmp_path, content), folder, caplog)

    content = make_content()
    content["annotations"][100]["id"] = content["annotations"][1]["id"]
    with pytest.raises(UserError, match="1 ids in 'annotations' are there more than once"):
        start(write_data_set(tmp_path, content), folder, caplog)

    content = make_content()
    for i in (20, 60):
        content["annotations"][i]["bbox"][3] = 0
        content["annotations"][i + 1]["id"] = -i
    content["annotations"][90]["bbox"][0] = float("nan")
    files = write_data_set(tmp_path, content)
    records, lines = start(files, folder, caplog)
    ids = [content["annotations"][i]["id"] for i in (20, 60, 90)]
    assert any(
        f"dropped 3 of 120 annotations: 1 with a box that is not finite (ids: {ids[2]}); "
        f"2 with a box of no area (ids: {ids[0]}, {ids[1]})" in line
        for line in lines
    )
    copy = MetadataCatalog.get("mine").json_file
    MetadataCatalog.remove("mine")
    assert list(records) == load_coco_json(copy, files[1], "mine")
    with open(copy) as f:
        corrected = json.load(f)
    largest = max(a["id"] for a in content["annotations"])
    assert sorted(a["id"] for a in corrected["annotations"])[-2:] == [largest + 1, largest + 2]
    assert corrected["images"] == content["images"] and corrected["info"] == content["info"]
