"""tools/benchmark.py datasets: the made data, what is compared, and the shape of the report."""

import json
import mmap
import subprocess
import sys

import pytest
from detectron2.data.datasets import load_coco_json

from benchmarks.data_sets.made_data import make_annotation_file, make_image_files
from benchmarks.data_sets.starts import checksum, private_memory
from rsb_d2.data.cache.annotation_cache import CHECKED_WITH_MASKS, AnnotationSource
from tests.helpers.paths import ROOT


@pytest.mark.parametrize("masks", [False, True])
def test_made_data_is_without_mistakes_and_compared_as_a_whole(masks, tmp_path):
    path, images = str(tmp_path / "made.json"), str(tmp_path / "images")
    make_annotation_file(path, 30, 200, masks=masks)
    make_image_files(images, 30)
    kind = CHECKED_WITH_MASKS if masks else "checked"
    records = AnnotationSource(path, images, kind, "").open()
    assert records.header["messages"] == []
    expected = load_coco_json(path, images, "coco_made")
    assert len(expected) == 30 and sum(len(r["annotations"]) for r in expected) == 200
    assert all(("segmentation" in a) == masks for r in expected for a in r["annotations"])
    assert checksum(records) == checksum(expected)
    expected[17]["annotations"][0]["bbox"][2] += 0.01
    assert checksum(records) != checksum(expected)


def test_private_memory_is_that_of_this_process():
    before = private_memory()
    with mmap.mmap(-1, 50_000_000, mmap.MAP_PRIVATE) as block:  # no memory that was here before
        block.write(b"x" * len(block))
        assert private_memory() - before > 0.9 * len(block)


@pytest.mark.slow
def test_report(tmp_path):
    path = tmp_path / "report.json"
    words = ["--images", "100", "--runs", "1", "--processes", "2", "--json", str(path)]
    tool = [sys.executable, str(ROOT / "tools" / "benchmark.py"), "datasets"]
    subprocess.run([*tool, *words, "--folder", str(tmp_path)], check=True)
    report = json.loads(path.read_text())
    assert report["comparison"]["passed"]
    assert [row["what"].split(",")[0] for row in report["rows"]][::3] == [
        "first start",
        "later start",
    ]
    assert all({"stock", "ours"} < row.keys() for row in report["rows"])
    assert len(report["notes"]) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]
