"""tools/benchmark.py and tools/gpu.py: every benchmark on tiny sizes, mistakes, and the table."""

import json
import shlex

import pytest

from benchmarks import (
    deployment,
    evaluation,
    gpu,
    models,
    prediction,
    pretraining,
    trainer,
    training,
)
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
        ("training --image-size 64x64 --cuda-graphs", "MODEL.CUDA_GRAPHS is for a GPU"),
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


def test_gpu_commands_are_valid(tool, monkeypatch):
    rows = [row for part in gpu.rows_of_parts("cpu").values() for row in part]
    assert len({row.name for row in rows}) == len(rows) > 20
    for row in rows:
        if row.has_report:
            monkeypatch.setattr("sys.argv", row.words)
            args = load_tool("benchmark").parse_args()
            if row.name == "inference float32 x16":
                assert (args.batch, args.image_size, args.rows) == (16, (800, 1333), ["end to end"])
    _, out, _ = tool("gpu", "--list")
    assert len(out.splitlines()) == len(rows)


def test_gpu_rows_in_several_calls(tmp_path, monkeypatch, capsys):
    script, file = tmp_path / "row.py", str(tmp_path / "found.json")
    script.write_text("import sys; print('fine'); sys.exit(sys.argv[1] == 'bad')")
    rows = {
        "first": [gpu.Row("a", [str(script), "good"], 60), gpu.Row("b", [str(script), "bad"], 60)],
        "second": [gpu.Row("long", [str(script), "good", "--weights", "missing.pth"], 600)],
    }
    monkeypatch.setattr(gpu, "rows_of_parts", lambda device: rows)
    assert gpu.measured_rows(file) == []
    assert not gpu.run_all(gpu.choose_rows([], [], "cpu"), file, print, seconds=300)
    assert gpu.measured_rows(file) == ["a"] and "not run: it may take 600 s" in str(
        capsys.readouterr()
    )
    missing = gpu.choose_rows([], [], "cpu", gpu.measured_rows(file))
    assert [row.name for part in missing.values() for row in part] == ["b", "long"]
    assert gpu.run_all({"second": missing["second"]}, file, print, seconds=1000)
    assert gpu.measured_rows(file) == ["a", "long"]
    with open(file) as f:
        found = json.load(f)["rows"]
    assert found["b"]["status"] == "failed with exit status 1" and found["b"]["output"] == "fine"
