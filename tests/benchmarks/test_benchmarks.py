"""tools/benchmark.py and tools/gpu.py: every benchmark on tiny sizes, mistakes, and the table."""

import json
import shlex

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from benchmarks import (
    deployment,
    evaluation,
    gpu,
    harness,
    inference,
    models,
    prediction,
    pretraining,
    trainer,
    training,
)
from rsb_d2.addons.export.comparison import Detections
from tests.helpers.catalogs import catalogs_kept
from tests.helpers.runs.programs import load_tool

STOCK = ["stock", "ours"]
RUNS = {
    "inference": ("--image-size 64x96 --rows 'end to end' --profile", STOCK, ["end to end"]),
    "training": (
        "--image-size 64x96 --rows 'an iteration' 'optimizer step'",
        STOCK,
        ["an iteration", "optimizer step"],
    ),
    "trainer": ("--image-size 64x64 --iterations 1", STOCK, ["1 iterations"]),
    "startup": ("--rows import --cpu-time --memory", STOCK, ["import"]),
    "evaluation": (
        "--images 6 --detections 20 --classes 3 --image-size 120x160",
        ["pycocotools", "ours"],
        ["boxes", "masks"],
    ),
    "datasets": (
        "--images 30 --processes 2",
        ["stock, load_coco_json", "stock", "ours"],
        ["to the first batch"],
    ),
    "prediction": (
        "--image-size 60x80 --images 3 --test-size 64 --workers 0",
        ["the model alone", "results", "results and pictures"],
        ["3 images"],
    ),
    "deployment": (
        "--image-size 64x96",
        ["PyTorch", "optimized", "onnxruntime", "OpenVINO"],
        ["an image"],
    ),
    "pretraining": (
        "--model resnet18 --batch 4 --train-size 32 --loader-workers 0",
        ["timm", "ours"],
        ["a step of 4 images", "loading 2 batches"],
    ),
}


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch):
    def narrow(make_config):
        def make(*args):
            cfg = make_config(*args)
            cfg.MODEL.FPN.OUT_CHANNELS = cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
            return cfg

        return make

    for name in ("our_config", "stock_config"):
        make = narrow(getattr(models, name))
        for module in (models, deployment, prediction, trainer, training):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, make)
    monkeypatch.setattr(pretraining, "_FILES", 4)
    monkeypatch.setattr(pretraining, "_LOADED_IMAGES", 8)
    monkeypatch.setattr(trainer, "_FILES", 4)
    with catalogs_kept("benchmark_trainer", "benchmark_pretraining"):
        yield


SLOW = ["startup", "deployment"]  # which start interpreters and export models


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in RUNS]
)
def test_benchmarks_run(name, tmp_path, monkeypatch, capsys):
    words, contenders, rows = RUNS[name]
    report, words = tmp_path / "report.json", [*shlex.split(words), "--runs", "1"]
    monkeypatch.setattr("sys.argv", ["benchmark.py", name, *words, "--json", str(report)])
    status = load_tool("benchmark").main()
    output = capsys.readouterr().out
    assert status == 0, output
    found = json.loads(report.read_text())
    assert found["command"].startswith(f"tools/benchmark.py {name}") and found["check"] in output
    assert list(found["seconds"]) == rows
    for row in rows:
        seconds = found["seconds"][row]
        if name == "evaluation":  # where Detectron2 has its C++
            seconds.pop("COCOeval_opt", None)
        assert list(seconds) == contenders
        assert all(len(values) == 1 and values[0] > 0 for values in seconds.values())
        assert f"{row}, {contenders[0]} / {contenders[-1]}: " in output
        if "--memory" in words:
            assert list(found["memory"][row]) == contenders
            assert min(found["memory"][row].values()) > 2**20
    assert ("convolution" in output) == (name == "inference")


def test_results_that_differ_are_not_measured(monkeypatch, capsys):
    words = shlex.split(RUNS["evaluation"][0])
    monkeypatch.setattr("sys.argv", ["benchmark.py", "evaluation", *words])
    check = evaluation.check

    def differ(args, results):
        results["ours"]["segm"] = results["ours"]["segm"] + 1e-9
        return check(args, results)

    monkeypatch.setattr(evaluation, "check", differ)
    assert load_tool("benchmark").main() == 1
    output = capsys.readouterr().out
    assert "NOT EQUAL: " in output and "within 1e-09" in output and "wall time" not in output


@pytest.mark.parametrize(
    "words, message",
    [
        ("evaluation --images 0", "--images: is 0; it must be 1 or more"),
        ("inference --image-size big", "--image-size: is 'big'; write height x width"),
        ("training --device tpu9", "--device: is 'tpu9', but torch finds no such device"),
        ("inference --dtype bfloat16", "name with --weights a model"),
        ("pretraining --batch 3", "--batch is 3; images are mixed in pairs"),
        ("startup --rows build", "--rows: there is no row 'build'"),
    ],
)
def test_mistakes(words, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmark.py", *words.split()])
    try:
        status = load_tool("benchmark").main()
    except SystemExit as e:  # of argparse
        status = e.code
    assert status == 2 and message in capsys.readouterr().err.splitlines()[-1]


def detections(scores, offset=0.0, classes=(1, 2, 3)):
    boxes = np.array([[0, 0, 10, 10], [20, 20, 30, 40], [5, 5, 9, 9]], np.float32)
    scores, classes = np.array(scores, np.float32), np.array(classes)
    return Detections(boxes[: len(scores)] + offset, scores, classes[: len(scores)])


@pytest.mark.parametrize(
    "other, difference",
    [
        (detections([0.9, 0.8, 0.7], offset=1e-3), None),
        (detections([0.9, 0.8, 0.7], offset=1), "stock and ours"),
        (detections([0.95, 0.8, 0.7]), "stock and ours"),
        (detections([0.9]), "stock and ours"),
        (detections([0.9, 0.8, 0.7], classes=(4, 2, 3)), "stock and ours"),
    ],
)
def test_same_detections(other, difference):
    results = {"stock": [detections([0.9, 0.8, 0.7])], "ours": [other]}
    if difference is None:
        assert "3 detections" in inference.same_detections(results)
    else:
        with pytest.raises(harness.Different, match=difference):
            inference.same_detections(results)
    with pytest.raises(harness.Different, match="nothing is detected"):
        inference.same_detections({"stock": [detections([])], "ours": [detections([])]})


def test_share_of_detections_found_again():
    def instances(boxes, scores, classes):
        found = Instances((100, 100))
        found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
        found.scores, found.pred_classes = torch.tensor(scores), torch.tensor(classes)
        return found

    expected = instances([[0, 0, 10, 10]] * 4, [0.9, 0.8, 0.7, 0.3], [1, 2, 3, 4])
    found = instances([[0, 0, 10, 9.5], [0, 0, 10, 8], [0, 0, 10, 10]], [0.92, 0.8, 0.6], [1, 2, 3])
    assert inference.share_found([expected], [expected]) == 1.0
    # The second has another box, the third another score, the fourth is missing.
    assert inference.share_found([expected], [found]) == 0.25


WRITES_REPORT = """
import json, sys
seconds = {"end to end": {"stock": [0.3, 0.4, 0.5], "stock, TF32": [0.2], "ours": [0.1]}}
memory = {"end to end": {"stock": 3 * 10**9, "ours": 10**9}}
json.dump({"seconds": seconds, "memory": memory}, open(sys.argv[-1], "w"))
"""


def test_gpu_rows(tmp_path, monkeypatch):
    """Rows that fail or take too long do not stop the others; earlier results stay."""
    path, lines = tmp_path / "found.json", []
    path.write_text('{"rows": {"earlier": {"status": "done", "output": "= 3 passed ="}}}')
    monkeypatch.setattr(gpu.Row, "has_report", property(lambda row: row.name == "measures"))
    rows = {
        "one": [
            gpu.Row("fails", ["-c", "print('why'); raise SystemExit(3)"], 60),
            gpu.Row("hangs", ["-c", "import time; time.sleep(99)"], 1),
        ],
        "two": [
            gpu.Row("measures", ["-c", WRITES_REPORT], 60),
            gpu.Row("tests", ["-c", "print('5 passed in 1 s')"], 60),
        ],
    }
    assert not gpu.run_all(rows, str(path), lines.append)
    assert "why" in lines
    assert path.with_suffix(".md").read_text().splitlines()[2:] == [
        "| earlier | 3 passed | | | |",
        "| fails | failed with exit status 3 | | | |",
        "| hangs | stopped at its limit of 1 s | | | |",
        "| measures | end to end | stock 400.0<br>stock, TF32 200.0<br>ours 100.0 "
        "| stock **4.00**<br>stock, TF32 **2.00** | stock 3.00<br>ours 1.00 |",
        "| tests | 5 passed in 1 s | | | |",
    ]
    assert gpu.run_all({"two": rows["two"]}, str(path), lines.append)
    path.write_text("[]")
    with pytest.raises(gpu.UserError, match="found.json was not written by this program"):
        gpu.run_all({}, str(path), lines.append)


def test_gpu_commands_are_valid(tool, monkeypatch):
    rows = [row for part in gpu.rows_of_parts("cpu").values() for row in part]
    assert len({row.name for row in rows}) == len(rows) > 20
    for row in rows:
        if row.has_report:
            monkeypatch.setattr("sys.argv", row.words)
            assert load_tool("benchmark").parse_args().memory
    _, out, _ = tool("gpu", "--list")
    assert len(out.splitlines()) == len(rows)


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "torch finds no GPU here"),
        (["speed"], "there is no part 'speed'; the parts are tests, train, inference"),
        (["tests", "--rows", "x99"], "no row's name contains x99"),
    ],
)
def test_gpu_mistakes(words, message, tool, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("RSB_TEST_DEVICE", raising=False)
    status, _, errors = tool("gpu", *words)
    assert status == 2 and message in errors[-1]
