"""tools/miniature.py: what it trains, what it keeps, and the table; with small trainings."""

import importlib.util
import json
import os
import statistics
import subprocess
import sys

import pytest

from rsb_d2.config.loading import load_config
from tests.helpers.paths import ROOT


@pytest.fixture
def program(monkeypatch):
    """The program, whose trainings are not run but invented from their options; and a caller."""
    spec = importlib.util.spec_from_file_location("miniature", ROOT / "tools" / "miniature.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.trained = []

    def train(config, output, options):
        cfg = load_config(str(ROOT / config), [*options, "OUTPUT_DIR", output])  # the keys exist
        if cfg.MODEL.WEIGHTS:
            assert os.path.exists(cfg.MODEL.WEIGHTS)
        module.trained.append(cfg)
        os.makedirs(output)
        for name in ("model_0000001.pth", "model_final.pth"):
            open(os.path.join(output, name), "w").close()
        half, end = cfg.TEST.EVAL_PERIOD, cfg.SOLVER.MAX_ITER
        start = os.path.basename(os.path.dirname(cfg.MODEL.WEIGHTS)).split("_")[1:2]
        ap = 10 * cfg.SEED + {"2015": 1, "a3": 2}.get(*start, 0) if start else 10 * cfg.SEED
        top1 = 90 - abs(cfg.SOLVER.BASE_LR - 0.05)
        lines = [
            {"iteration": half - 1, "bbox/AP": ap / 2, "bbox/AP50": ap, "cls/top1": 1.0},
            {
                "iteration": end - 1,
                "bbox/AP": ap,
                "bbox/AP50": ap + 5,
                "cls/top1": top1,
                "val_total_loss": 1.0,
            },
        ]
        with open(os.path.join(output, "metrics.json"), "w") as f:
            f.write("\n".join(map(json.dumps, lines)))

    monkeypatch.setattr(module, "train", train)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["miniature.py", *map(str, arguments)])
        return module.main()

    module.call = call
    return module


def names_of(trained):
    return [os.path.basename(cfg.OUTPUT_DIR) for cfg in trained]


def test_each_start_and_seed_once(program, tmp_path, capsys):
    assert program.call("--output", tmp_path / "m", "--rates", "0.02", "0.05", "--seeds", 1, 2) == 0
    names = names_of(program.trained)
    assert len(set(names)) == len(names) == 2 + 2 * 2 + 3 * 2
    detectors = [cfg for cfg in program.trained if cfg.MODEL.META_ARCHITECTURE != "ImageClassifier"]
    # They differ in their weights and their seed alone.
    for cfg in detectors:
        cfg.MODEL.WEIGHTS, cfg.SEED, cfg.OUTPUT_DIR = "", 0, ""
        assert cfg == detectors[0]
    assert (detectors[0].SOLVER.MAX_ITER, detectors[0].SOLVER.WARMUP_ITERS) == (300, 56)
    state = json.loads((tmp_path / "m" / "miniature.json").read_text())
    assert [(r["start"], r["seed"]) for r in state["rows"]] == [
        (start, seed) for seed in (1, 2) for start in ("nothing", "2015", "a3")
    ]
    assert {r["rate"] for r in state["rows"] if r["start"] == "2015"} == {0.05}  # the better one
    table = capsys.readouterr().out
    a3 = statistics.fmean([12, 22])
    assert f"| A3's ingredients | 2 | {a3:.1f} (12.0-22.0) | {a3 + 5:.1f} (17.0-27.0) |" in table
    assert (tmp_path / "m" / "miniature.png").stat().st_size > 1000
    left = {p.name for p in (tmp_path / "m").rglob("*.pth")}
    assert left == {"model_final.pth"}


def test_an_interrupted_miniature_continues(program, tmp_path, monkeypatch):
    whole, train = tmp_path / "m", program.train

    def stop(config, output, options):
        if "detector_2015_1" in output:
            raise program.TrainingFailed(3)
        train(config, output, options)

    monkeypatch.setattr(program, "train", stop)
    arguments = ("--output", whole, "--seeds", 1, "--rates", "0.05")
    assert program.call(*arguments) == 3
    before = names_of(program.trained)
    monkeypatch.setattr(program, "train", train)
    assert program.call(*arguments) == 0
    assert names_of(program.trained)[len(before) :] == [
        "detector_2015_1",
        "pretraining_a3_1",
        "detector_a3_1",
    ]
    assert program.call(*arguments, "--table") == 0
    done = len(program.trained)
    assert program.call("--output", whole, "--seeds", 1, 2, "--starts", "nothing") == 0
    assert names_of(program.trained)[done:] == ["detector_nothing_2"]


def test_mistakes(program, tmp_path, capsys):
    assert program.call("--output", tmp_path / "none", "--table") == 2
    assert "has no row yet" in capsys.readouterr().err
    program.call("--output", tmp_path / "m", "--starts", "nothing", "--seeds", 1)
    assert program.call("--output", tmp_path / "m", "--iterations", 20) == 2
    assert "is of iterations 300, pretrain_iterations 200; write these" in capsys.readouterr().err
    for words, says in (
        (("--iterations", 2), "write 3 or more"),
        (("--seeds", 0), "0 is that of the rates"),
        (("--rates", -1), "above 0"),
        (("--starts", "a4"), "invalid choice"),
    ):
        with pytest.raises(SystemExit):
            program.call(*words)
        assert says in capsys.readouterr().err


@pytest.mark.slow
def test_real_trainings(tmp_path):
    """In seconds, on little data, with the smallest of models."""
    data = tmp_path / "data"
    changes = {
        "DETECTOR": (
            "configs/frcnn_rsb_sample.yaml",
            "MODEL: {DEVICE: cpu, TIMM: {NAME: resnet18}, FPN: {OUT_CHANNELS: 32}}\n"
            "INPUT: {MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64}\n"
            "SOLVER: {IMS_PER_BATCH: 2}\n"
            "DATASETS:\n  COCO_JSON:\n"
            f"    - [rsb_sample_train, {data}/a/annotations/train.json, {data}/a/train]\n"
            f"    - [rsb_sample_val, {data}/a/annotations/val.json, {data}/a/val]\n",
        ),
        "a3": ("configs/pretrain/resnet50_rsb_sample.yaml", ""),
        "2015": ("configs/pretrain/resnet50_2015_sample.yaml", ""),
    }
    classifier = (
        "MODEL: {DEVICE: cpu, TIMM: {NAME: resnet18}}\n"
        "INPUT: {CLASSIFIER: {TRAIN_SIZE: 32, TEST_SIZE: 32}}\nSOLVER: {IMS_PER_BATCH: 8}\n"
        "DATASETS:\n  IMAGE_FOLDER:\n"
        f"    - [rsb_objects_train, {data}/b/train]\n    - [rsb_objects_val, {data}/b/val]\n"
    )
    lines = ["import sys; sys.argv[0] = 'miniature.py'", "import miniature as m"]
    for name, (base, text) in changes.items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(f"_BASE_: {ROOT / base}\n{text or classifier}")
        target = "m.DETECTOR" if name == "DETECTOR" else f"m.PRETRAINING[{name!r}]"
        lines.append(f"{target} = {str(path)!r}")
    lines += [
        "from rsb_d2.addons.workbench.sample import make_sample_data, make_sample_objects",
        f"make_sample_data({str(data / 'a')!r}, num_train=4, num_val=2, image_size=64)",
        f"make_sample_objects({str(data / 'b')!r}, num_train=16, num_val=8, image_size=32)",
        "sys.exit(m.main())",
    ]
    sizes = ["--iterations", "4", "--pretrain-iterations", "3", "--seeds", "1", "--rates", "0.01"]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines), "--output", str(tmp_path / "m"), *sizes],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tools'}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = json.loads((tmp_path / "m" / "miniature.json").read_text())["rows"]
    assert len(rows) == 3 and all(0 <= row["AP"] <= 100 for row in rows)
    log = (tmp_path / "m" / "detector_a3_1" / "log.txt").read_text()
    assert "loaded:  the complete backbone" in log and "unused in the file: fc (2)" in log
