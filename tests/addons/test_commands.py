"""The console command: its programs, what they import, and the completion of shells."""

import argparse
import json
import os
import shutil
import subprocess
import sys

import pytest
from detectron2.engine import default_argument_parser

import rsb_d2_cli
from rsb_d2.addons.commands import PROGRAMS, make_parser
from rsb_d2.addons.workbench.convert import FORMATS
from rsb_d2.checkpoint.convert import TARGETS
from rsb_d2.errors import end_with_closed_pipe
from rsb_d2.predictor import DTYPES
from tests.helpers.paths import ROOT

# Runs the command and prints the modules that it has imported.
MODULES = """
import json, sys
import rsb_d2_cli
try:
    status = rsb_d2_cli.main(sys.argv[1:])
except SystemExit as e:
    status = e.code
print()
print(json.dumps([status, sorted(sys.modules)]))
"""
HEAVY = {"torch", "torchvision", "timm", "detectron2"}


def run_apart(code, *arguments, folder=None):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
    )


def imported(*arguments, folder=None):
    """Run the command in a new process; return its status and the top modules it imported."""
    result = run_apart(MODULES, *arguments, folder=folder)
    assert result.returncode == 0, result.stderr
    status, modules = json.loads(result.stdout.splitlines()[-1])
    assert status == 0, result.stderr
    return {name.partition(".")[0] for name in modules}


@pytest.mark.parametrize("words", [["--help"], ["predict", "--help"], ["completion", "bash"]])
def test_help_imports_only_the_standard_library(words):
    others = imported(*words) - set(sys.stdlib_module_names) - {"rsb_d2", "rsb_d2_cli", "__main__"}
    assert {name for name in others if not name.startswith(("_", "sitecustomize"))} == set()


def test_data_sets_are_converted_and_shown_without_torch(sample_data, tmp_path):
    files = ["--annotations", sample_data / "annotations/val.json", "--images", sample_data / "val"]
    results = make_results(sample_data / "annotations/val.json")
    (tmp_path / "results.json").write_text(json.dumps(results))
    for words in (
        ["sample-data", "pictures", "--folder", "made", "--num-train", 1, "--num-val", 1],
        ["convert", *files[1:2], "--images", files[3], "--to", "yolo", "--output", "yolo"],
        ["convert", "yolo", "--output", "coco"],
        ["browse", *files, "--output", "data.html"],
        ["report", *files, "--results", "results.json", "--output", "report.html"],
    ):
        assert not imported(*words, folder=tmp_path) & HEAVY, words[0]
    names = {"made", "yolo", "coco", "data.html", "data.png", "report.html"}
    assert names <= {path.name for path in tmp_path.iterdir()}


def make_results(path):
    """Return the annotations of a file as detections."""
    keys = ("image_id", "category_id", "bbox")
    annotations = json.loads(path.read_text())["annotations"]
    return [{**{key: a[key] for key in keys}, "score": 0.9} for a in annotations]


def test_options_of_train_are_those_of_detectron2():
    ours = make_parser()._subparsers._group_actions[0].choices["train"]
    words = "--config-file a.yaml --resume --eval-only --num-gpus 2 --num-machines 3 "
    words += "--machine-rank 1 --dist-url tcp://a:1 MODEL.DEVICE cpu --x"
    for line in ([], words.split(), ["SOLVER.MAX_ITER", "3"]):
        expected = vars(default_argument_parser().parse_args(line))
        found = vars(ours.parse_args(line))
        if not found["dist_url"]:  # the program asks Detectron2
            del found["dist_url"], expected["dist_url"]
        assert expected.items() <= found.items()


def test_choices_are_those_of_the_library():
    choices = {
        (name, action.dest): action.choices
        for name, parser in make_parser()._subparsers._group_actions[0].choices.items()
        for action in parser._actions
    }
    assert choices["convert", "source"] == FORMATS
    assert choices["convert-weights", "to"] == TARGETS
    assert choices["predict", "dtype"] == tuple(DTYPES)


def test_a_missing_detectron2_is_one_line():
    code = "import sys; sys.modules['detectron2'] = None; import rsb_d2_cli\n"
    code += "sys.exit(rsb_d2_cli.main(sys.argv[1:]))"
    for words in (["train"], ["predict", "a.jpg"], ["demo"], ["export", "--output", "a.onnx"]):
        result = run_apart(code, *words)
        assert result.returncode == 2 and result.stdout == ""
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"rsb-d2 {words[0]}: error: ")
        assert "run `rsb-d2 install-detectron2`" in line


def test_a_mistake_of_train_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as e:
        rsb_d2_cli.main(["eval", "--config-file", "frcnn_rsb_sample", "MODEL.NONE", "1"])
    assert str(e.value).startswith("rsb-d2 eval: error: ") and "MODEL.NONE" in str(e.value)


@pytest.mark.slow
def test_two_processes_train(sample_data, tmp_path):
    sets = [
        [split, str(sample_data / "annotations" / f"{split}.json"), str(sample_data / split)]
        for split in ("train", "val")
    ]
    opts = ["DATASETS.COCO_JSON", str(sets), "DATASETS.TRAIN", "('train',)", "DATASETS.TEST", "()"]
    opts += ["MODEL.TIMM.NAME", "resnet10t", "MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"]
    opts += ["MODEL.FPN.OUT_CHANNELS", "32", "INPUT.MIN_SIZE_TRAIN", "(64,)", "SOLVER.STEPS", "()"]
    opts += ["SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "SOLVER.WARMUP_ITERS", "0"]
    opts += ["DATALOADER.NUM_WORKERS", "0", "OUTPUT_DIR", "out", "TEST.EVAL_PERIOD", "0"]
    words = ["train", "--config-file", "frcnn_rsb_sample", "--num-gpus", "2", *opts]
    result = subprocess.run(
        [sys.executable, "-W", "ignore", rsb_d2_cli.__file__, *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "out" / "model_final.pth").is_file()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    "words, expected",
    [
        (["con"], ["convert", "convert-weights"]),
        (["predict", "--thr"], ["--threshold"]),
        (["predict", "--dtype", "b"], ["bfloat16"]),
        (["sample-data", "pi"], ["pictures"]),
    ],
)
def test_completion(words, expected, capsys, tmp_path):
    assert rsb_d2_cli.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    line = " ".join(["rsb-d2", *words[:-1]]).split()
    script += f"COMP_WORDS=({' '.join(['rsb-d2', *words])}) COMP_CWORD={len(words)}\n"
    script += f"_rsb_d2 rsb-d2 '{words[-1]}' '{line[-1]}'\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\n"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert result.stderr == "" and sorted(result.stdout.split()) == sorted(expected)


def test_every_program_has_a_line_of_help():
    text = " ".join(make_parser().format_help().split())
    assert all(f" {name} " in text for name in PROGRAMS)
    assert isinstance(make_parser(), argparse.ArgumentParser)


def run_without_reader(*command, **options):
    """Run a command whose stdout nobody reads; return its status and stderr."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = subprocess.run(
            [sys.executable, "-W", "ignore", *map(str, command)],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), **options},
        )
    finally:
        os.close(writer)
    return result.returncode, result.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_ends_a_program_quietly(unbuffered, sample_data, tmp_path):
    words = [sample_data / "annotations/val.json", "--images", sample_data / "val"]
    words = [ROOT / "tools" / "convert_data.py", *words, "--output", tmp_path / "out"]
    assert run_without_reader(*words, PYTHONUNBUFFERED=unbuffered) == (141, "")
    assert (tmp_path / "out" / "train.json").is_file()


def test_help_into_a_closed_pipe():
    assert run_without_reader(rsb_d2_cli.__file__, "--help", PYTHONUNBUFFERED="") == (141, "")


def test_another_broken_pipe_is_an_error():
    with pytest.raises(BrokenPipeError), end_with_closed_pipe():
        raise BrokenPipeError


def test_unknown_options_are_reported_with_the_usage_of_the_program(capsys):
    for words, tool in ((["--verbose"], "check.py"), (["MODEL.X", "1"], "")):
        with pytest.raises(SystemExit):
            rsb_d2_cli.main(["check", "--config-file", "a.yaml", *words], tool)
        usage, *_, message = capsys.readouterr().err.splitlines()
        name = tool or "rsb-d2 check"
        assert usage.startswith(f"usage: {name} [-h] --config-file")
        assert message == f"{name}: error: unrecognized arguments: {' '.join(words)}"
