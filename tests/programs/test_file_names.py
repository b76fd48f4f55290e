"""Names that are not UTF-8, or that break a line: each program does its work, or reports a line."""

import json
import os

import pytest

from rsb_d2.addons.workbench.sample import make_sample_data
from tests.helpers.catalogs import catalogs_kept
from tests.helpers.runs.programs import call_train_net
from tests.helpers.runs.sample_run import CONFIG, SMALL

LATIN_1 = os.fsdecode(b"caf\xe9.jpg")
NAMES = [LATIN_1, "new\nline.jpg", "-dash.jpg", "tab\t\x1b[31m.jpg"]


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Sample data whose images have such names, in a folder that has one as well."""
    folder = tmp_path / os.fsdecode(b"donn\xe9es")
    make_sample_data(str(folder), num_train=4, num_val=2)
    for split in ("train", "val"):
        file = folder / "annotations" / f"{split}.json"
        content = json.loads(file.read_text())
        for record, name in zip(content["images"], NAMES):
            (folder / split / record["file_name"]).rename(folder / split / name)
            record["file_name"] = name
        file.write_text(json.dumps(content))
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    with catalogs_kept():
        yield folder


def entries(folder):
    paths = ([f"{folder}/annotations/{s}.json", f"{folder}/{s}"] for s in ("train", "val"))
    return repr([[name, *pair] for name, pair in zip(("odd_train", "odd_val"), paths)])


def test_train_net(tmp_path, data):
    words = [*SMALL, "SOLVER.MAX_ITER", "2", "MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"]
    words += ["DATASETS.COCO_JSON", entries(data), "OUTPUT_DIR", str(tmp_path / "run")]
    words += ["DATASETS.TRAIN", "('odd_train',)", "DATASETS.TEST", "('odd_val',)"]
    words += ["DATALOADER.NUM_WORKERS", "0", "TEST.EVAL_PERIOD", "0"]
    call_train_net(tmp_path, "--config-file", CONFIG, *words)
    assert {"detections.png", "model_final.pth"} <= set(os.listdir(tmp_path / "run"))
    assert "Pictures: " in (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")


def test_browse_data_and_report(tmp_path, data, tool):
    annotations = data / "annotations" / os.fsdecode(b"\xe9\n.json")
    (data / "annotations" / "train.json").rename(annotations)
    words = ["--annotations", str(annotations), "--images", f"{data}/train"]
    output = f"{data}/page.html"
    status, out, err = tool("browse_data", *words, "--output", output)
    assert status == 0 and "donn\\udce9es/page.png" in out, err
    assert "caf\\udce9.jpg" in open(output, encoding="utf-8").read()
    results = tmp_path / "results.json"
    box = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 0.9}
    results.write_text(json.dumps([box]))
    words += ["--results", str(results), "--output", f"{data}/report.html"]
    assert tool("report", *words)[0] == 0


def test_predict(tmp_path, data, tool):
    (data / "train" / os.fsdecode(b"b\xe9\n.png")).write_bytes(b"no image")
    output = f"{data}/found"
    words = ["--output", output, "--workers", "0", "--opts", "INPUT.MIN_SIZE_TEST", "64"]
    status, out, err = tool("predict", "--run", "{run}", str(data / "train"), *words)
    assert status == 1
    (skipped,) = [line for line in err if line.startswith("skipped ")]
    assert "b\\udce9\\n.png: it is not an image" in skipped
    rows = [line for line in out.splitlines() if ".jpg " in line]
    assert len(rows) == 4 and any("new\\nline.jpg" in row for row in rows)
    with open(f"{output}/images.json") as f:
        found = {os.path.basename(record["file_name"]) for record in json.load(f)["images"]}
    assert found == set(NAMES)
    assert sorted(os.listdir(f"{output}/pictures")) == sorted(NAMES)
