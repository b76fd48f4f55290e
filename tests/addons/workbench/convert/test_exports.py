"""Small files as the labeling tools export them, imitated key by key."""

import json

import pytest

from rsb_d2.addons.workbench.convert import convert
from tests.helpers.data.label_files import image, write


def roboflow(folder, names=("train", "valid", "test")):
    for name in names:
        image(folder / name / "a_jpg.rf.0123.jpg")
        content = {
            "info": {"year": "2023", "version": "1", "contributor": "", "url": ""},
            "licenses": [{"id": 1, "url": "", "name": "CC BY 4.0"}],
            "categories": [
                {"id": 0, "name": "ships", "supercategory": "none"},
                {"id": 1, "name": "ship", "supercategory": "ships"},
            ],
            "images": [
                {
                    "id": 0,
                    "license": 1,
                    "file_name": "a_jpg.rf.0123.jpg",
                    "height": 80,
                    "width": 100,
                    "date_captured": "2023-06-19T12:13:11+00:00",
                }
            ],
            "annotations": [
                {
                    "id": 0,
                    "image_id": 0,
                    "category_id": 1,
                    "bbox": [10, 20, 30, 15.5],
                    "area": 465,
                    "segmentation": [],
                    "iscrowd": 0,
                }
            ],
        }
        write(folder / name / "_annotations.coco.json", json.dumps(content))


@pytest.mark.parametrize("target", ["coco", "yolo"])
def test_an_unzipped_export_of_roboflow(tmp_path, target):
    roboflow(tmp_path / "ships")
    found = convert([str(tmp_path / "ships")], str(tmp_path / "out"), target=target)
    assert found.data.names == ["ship"] and list(found.data.splits) == ["train", "val", "test"]
    assert found.data.notes["categories that only group others left out (ships)"] == 1
    assert [p.objects[0].box for p in found.data.pictures()] == [(10, 20, 30, 15.5)] * 3
    if target == "coco":
        with open(found.files[1]) as f:
            written = json.load(f)
        assert [c["name"] for c in written["categories"]] == ["ship"]
