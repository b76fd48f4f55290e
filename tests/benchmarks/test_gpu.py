"""tools/gpu.py: rows that fail or take too long, what is merged, and the table."""

import json
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from detectron2.structures import Boxes, Instances

from benchmarks import timing
from benchmarks.gpu import (
    closeness,
    precision,
    run,
    waits,
)
from benchmarks.gpu.rows import Row, rows_of_parts
from rsb_d2 import UserError

WRITES = """
import json, sys
summary = lambda *v: {"median": v[1], "min": v[0], "max": v[2], "values": list(v)}
row = {"what": "end to end", "stock": summary(0.3, 0.4, 0.5), "stock, TF32": summary(0.1, 0.2, 0.3),
       "ours": summary(0.05, 0.1, 0.2)}
json.dump({"comparison": {"passed": True, "text": ""}, "rows": [row, row],
           "memory": {"stock": 3 * 10**9}}, open(sys.argv[sys.argv.index("--json") + 1], "w"))
"""


def row(name, code, seconds=60, has_report=True):
    return Row(name, ["-c", code], seconds, has_report)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    path = tmp_path_factory.mktemp("gpu") / "found.json"
    path.write_text(
        json.dumps({"rows": {"of before": {"status": "done", "output": ["=3 passed="]}}})
    )
    said = []
    rows = {
        "one": [
            row("fails", "print('why'); raise SystemExit(3)"),
            row("hangs", "print('so far', flush=True); import time; time.sleep(99)", seconds=1),
        ],
        "two": [row("measures", WRITES), row("tests", "print('5 passed in 1 s')", 60, False)],
    }
    is_good = run.run_all(rows, str(path), "cpu", said.append)
    return SimpleNamespace(is_good=is_good, said=said, path=path, json=json.loads(path.read_text()))


def test_a_row_that_fails_stops_no_other(found):
    rows = found.json["rows"]
    assert {name: r["status"] for name, r in rows.items()} == {
        "of before": "done",
        "fails": "failed with exit status 3",
        "hangs": "stopped at its limit of 1 s",
        "measures": "done",
        "tests": "done",
    }
    assert rows["fails"]["output"] == ["why"] and rows["hangs"]["output"] == ["so far"]
    assert rows["measures"]["part"] == "two" and len(rows["measures"]["report"]["rows"]) == 2
    assert found.json["machine"]["torch"] == torch.__version__
    assert not found.is_good and "  | why" in found.said


def test_the_table(found):
    table = found.path.with_suffix(".md").read_text()
    assert table.rstrip("\n") == found.said[-1]
    lines = table.splitlines()[4:]
    assert lines == [
        "| of before | 3 passed | | | | |",
        "| fails | failed with exit status 3 | | | | |",
        "| hangs | stopped at its limit of 1 s | | | | |",
        "| measures | end to end | 400.0 (300.0-500.0) | 100.0 (50.0-200.0) "
        "| stock **4.00**<br>stock, TF32 **2.00** | stock 3.00 |",
        "| tests | 5 passed in 1 s | | | | |",
    ]


def test_a_part_has_its_time(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "_PART_SECONDS", 0)
    path = tmp_path / "found.json"
    assert not run.run_all({"one": [row("late", "")]}, str(path), "cpu", lambda _: None)
    status = json.loads(path.read_text())["rows"]["late"]["status"]
    assert status == "not run: the time of its part is over"


def test_without_a_gpu_one_line(tool, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("RSB_TEST_DEVICE", raising=False)
    status, out, errors = tool("gpu", "inference")
    assert (status, out, len(errors)) == (2, "", 1) and "torch finds no GPU here" in errors[0]


@pytest.mark.parametrize(
    "words, message",
    [
        (["speed"], "there is no part 'speed'; write some of tests, train, inference"),
        (["tests", "--rows", "x99"], "no row's name has x99 in it"),
    ],
)
def test_mistakes(tool, words, message):
    status, _, errors = tool("gpu", *words)
    assert status == 2 and message in errors[-1]


def test_every_row_is_a_command_that_there_is(tool, monkeypatch):
    """The parsers take all of them; that they run is tested with each of the programs."""
    import argparse

    from tests.helpers.paths import ROOT
    from tests.helpers.runs.programs import load_tool

    program, names = load_tool("benchmark"), []
    for part in rows_of_parts("cuda", str(ROOT)).values():
        for r in part:
            names.append(r.name)
            if r.words[0] == "tools/benchmark.py":
                monkeypatch.setattr("sys.argv", [*r.words, "--json", "x"])
                assert isinstance(program.parse_args(), argparse.Namespace)
    assert len(names) == len(set(names)) > 20
    _, out, _ = tool("gpu", "--list")
    assert len(out.splitlines()) == len(names)


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "other.json"
    path.write_text("[]")
    with pytest.raises(UserError, match="other.json is no file of this program"):
        run.run_all({}, str(path), "cpu")


def test_steady_clocks():
    assert not timing.are_steady([1.0] * 9)
    assert timing.are_steady([9.0, *[1.0] * 5, *[1.01] * 5])
    assert not timing.are_steady([*[1.1] * 5, *[1.0] * 5])


def test_tf32_is_as_before_afterwards():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    for enabled in (True, False):
        with precision.tf32(enabled):
            assert torch.backends.cuda.matmul.allow_tf32 is enabled
            assert torch.backends.cudnn.allow_tf32 is enabled
        assert before == (
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.allow_tf32,
        )


def instances(boxes, scores, classes):
    found = Instances((100, 100))
    found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    found.scores, found.pred_classes = torch.tensor(scores), torch.tensor(classes)
    return found


def test_share_of_detections_that_are_found_again():
    expected = instances([[0, 0, 10, 10]] * 4, [0.9, 0.8, 0.7, 0.3], [1, 2, 3, 4])
    found = instances([[0, 0, 10, 9.5], [0, 0, 10, 8], [0, 0, 10, 10]], [0.92, 0.8, 0.6], [1, 2, 3])
    assert closeness.share_found([expected], [expected]) == 1.0
    # By its box, not; by its score, not; not there.
    assert closeness.share_found([expected], [found]) == 0.25
    nothing = instances([], [], [])
    assert closeness.share_found([expected, nothing], [nothing, expected]) == 0.0
    compare = closeness.compare_shares
    assert not compare([expected], [expected], [found], torch.bfloat16)["passed"]
    assert compare([expected], [found], [found], torch.bfloat16)["passed"]
    assert not compare([nothing], [nothing], [nothing], torch.bfloat16)["passed"]


def test_what_the_profiler_saw():
    cuda, cpu = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU

    def event(name, device, us=0):
        time_range = SimpleNamespace(elapsed_us=lambda: us)
        return SimpleNamespace(name=name, device_type=device, time_range=time_range)

    events = [
        event("cudaStreamSynchronize", cpu),
        event("cudaStreamSynchronize", cpu),
        event("aten::copy_", cpu),
        event("Memcpy DtoH (Device -> Pageable)", cuda, 3),
        event("gemm", cuda, 5),
        event("gemm", cuda, 7),
    ]
    assert waits.count_waits(events) == (
        Counter({"cudaStreamSynchronize": 2}),
        Counter({"Memcpy DtoH (Device -> Pageable)": 1}),
    )
    lines = waits.kernel_table(events).splitlines()
    assert lines[0] == "kernels and copies: 3, 15 us" and lines[1].split()[:4] == [
        "12",
        "us",
        "2",
        "x",
    ]


def test_where_a_warning_comes_from():
    import warnings

    def here():
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    with waits.recorded_places("called a synchronizing") as places:
        here()
        here()
    ((place, number),) = places.items()
    assert number == 2 and place.startswith("tests/benchmarks/test_gpu.py:") and "here" in place
