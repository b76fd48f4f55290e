"""Real data sets: the objects of the files, counted without the package.

``RSB_REAL_DATA`` is a folder with ``bccd`` (Pascal VOC), ``mri`` (an export of Roboflow) and
``samples`` (of icevision: COCO, VIA, VOC); without it, the tests are skipped.
"""

import json
import os
import re
from pathlib import Path

import pytest

from rsb_d2.addons.workbench.convert import convert

DATA = Path(os.environ.get("RSB_REAL_DATA", ""))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("RSB_REAL_DATA"), reason="RSB_REAL_DATA does not name a folder with data"
    ),
]


def of_xml(folder):
    texts = [path.read_text() for path in folder.rglob("*.xml")]
    return len(texts), sum(text.count("<object>") for text in texts)


def of_coco(*files):
    contents = [json.loads(file.read_text()) for file in files]
    return sum(len(c["images"]) for c in contents), sum(len(c["annotations"]) for c in contents)


def of_via(file):
    entries = json.loads(file.read_text()).values()
    return len(entries), sum(len(entry["regions"]) for entry in entries)


SAMPLES = DATA / "samples"
SETS = {
    "bccd": (DATA / "bccd", lambda: of_xml(DATA / "bccd"), {}),
    "mri": (DATA / "mri", lambda: of_coco(*DATA.glob("mri/*/*.json")), {}),
    "fridge": (SAMPLES / "fridge", lambda: of_xml(SAMPLES / "fridge"), {}),
    "voc": (SAMPLES / "voc", lambda: of_xml(SAMPLES / "voc"), {}),
    "via": (SAMPLES / "via", lambda: of_via(SAMPLES / "via/via_bbox.json"), {"attribute": "label"}),
    "coco": (SAMPLES / "annotations.json", lambda: of_coco(SAMPLES / "annotations.json"), {}),
    "keypoints": (
        SAMPLES / "keypoints_annotations.json",
        lambda: of_coco(SAMPLES / "keypoints_annotations.json"),
        {},
    ),
}


@pytest.mark.parametrize("target", ["coco", "yolo"])
@pytest.mark.parametrize("name", SETS)
def test_all_objects_arrive(name, target, tmp_path):
    source, count, options = SETS[name]
    images, objects = count()
    found = convert([str(source)], str(tmp_path / "out"), target=target, **options)
    assert (found.data.images_read, found.data.objects_read) == (images, objects)
    left_out = [int(n) for n in re.findall(r"(?:out: |; )(\d+) ", found.summary())]
    if target == "coco":
        files = sorted((tmp_path / "out").glob("*.json"))
        assert of_coco(*files) == (images, objects - sum(left_out))
    else:
        rows = [file.read_text().split("\n") for file in (tmp_path / "out/labels").rglob("*.txt")]
        assert sum(len(text) - 1 for text in rows) == objects - sum(left_out)
        assert len(rows) == images
