"""All measurements that need a GPU, one process each, into a JSON file and a table."""

import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Collection, Dict, List, NamedTuple

from rsb_d2.errors import UserError
from rsb_d2.files import whole_file

ROOT = Path(__file__).parents[1]
_LAST_LINES = 25  # that are kept of the output of a row that failed
_SAMPLE_OUTPUT = "output/gpu/sample"  # written by the part "train", used by "inference"


class Row(NamedTuple):
    """A program, with its arguments from the project's root, and its time limit in seconds."""

    name: str
    words: List[str]
    seconds: int

    @property
    def has_report(self) -> bool:
        return self.words[0] == "tools/benchmark.py"


def rows_of_parts(device: str) -> Dict[str, List[Row]]:
    """Return all rows by part, in the order in which they run."""
    weights = f"--weights {_SAMPLE_OUTPUT}/model_final.pth"  # left out where it does not exist
    low, graphs = "--dtype bfloat16", "--compile reduce-overhead"
    on_device, large = f"--device {device}", f"--device {device} --image-size 800x1333"
    train = f"--config-file configs/frcnn_rsb_sample.yaml MODEL.DEVICE {device}"
    tests = ["-m", "pytest", "-q", "-n", "8", "--durations=10", "-m"]
    parts = {
        "tests": [Row("tests", [*tests, "gpu and not slow"], 200)],
        "train": [
            Row("train, its data", ["tools/sample_data.py", "pictures"], 30),
            Row("train", f"train_net.py {train} OUTPUT_DIR {_SAMPLE_OUTPUT}".split(), 120),
        ],
    }

    def add(part: str, benchmark: str, seconds: int, kind: str, words: str) -> None:
        command = ["tools/benchmark.py", benchmark, *shlex.split(words)]
        parts.setdefault(part, []).append(Row(f"{benchmark} {kind}", command, seconds))

    for n in (1, 8, 16):
        common = f"{large} --batch {n} --runs 10"
        common += f" {weights}" if n == 1 else " --rows 'end to end'"
        add("inference", "inference", 60, f"bfloat16, graphs x{n}", f"{common} {low} {graphs}")
        add("inference", "inference", 60, f"float32 x{n}", common)
        words = f"{common} --dtype float16 {graphs}"
        add("inference", "inference", 60, f"float16, graphs x{n}", words)
    common = f"{large} --batch 1 --rows 'end to end'"
    words = f"{common} {low} {graphs} --runs 2 --memory"
    add("inference", "inference", 60, "memory x1", words)
    for n in (2, 16):
        common = f"{large} --batch {n} --runs 5 --rows 'an iteration'"
        words = f"{common} {low}" + (" --memory" if n == 2 else "")
        add("training", "training", 90, f"bfloat16 x{n}", words)
        add("training", "training", 60, f"bfloat16, graphs x{n}", f"{words} --cuda-graphs")
        add("training", "training", 60, f"float32 x{n}", common)
    common = f"{on_device} --batch 256 --runs 5"
    add("pretraining", "pretraining", 60, "bfloat16", f"{common} {low} --loader-workers 8")
    add("pretraining", "pretraining", 45, "TF32", f"{common} --tf32")
    words = f"{on_device} {low} --images 64 --batch 8 --workers 4 --runs 3"
    add("prediction", "prediction", 60, "bfloat16", words)
    add("evaluation", "evaluation", 60, "x1000", "--images 1000 --runs 1")
    common = f"{large} --batch 1 --runs 10 --rows 'end to end' {low}"
    parts["slow-tests"] = [Row("tests, slow ones", [*tests, "gpu and slow"], 200)]
    add("more", "inference", 60, "bfloat16 x1", common)
    add("more", "inference", 120, "bfloat16, compiled x1", f"{common} --compile")
    words = f"{large} --batch 2 --runs 5 --rows 'an iteration' {low} --compile"
    add("more", "training", 180, "bfloat16, compiled x2", words)
    words = f"{on_device} --batch 256 --runs 5 {low} --compile"
    add("more", "pretraining", 120, "bfloat16, compiled", words)
    common = f"{large} --runs 2 --profile {low}"
    add("profile", "inference", 60, "profile", f"{common} --rows 'end to end' {graphs}")
    words = f"{common} --batch 2 --rows 'an iteration'"
    add("profile", "training", 90, "profile", words)
    return parts


def choose_rows(
    parts: List[str], names: List[str], device: str, without: Collection[str] = ()
) -> Dict[str, List[Row]]:
    """Return the rows of some parts, or of all, whose names contain one of some words, or all.

    Rows whose names are in ``without`` are left out.
    """
    rows = rows_of_parts(device)
    if unknown := [part for part in parts if part not in rows]:
        raise UserError(f"there is no part {unknown[0]!r}; the parts are {', '.join(rows)}")
    chosen = {
        part: [r for r in rows[part] if not names or any(n in r.name for n in names)]
        for part in parts or rows
    }
    if not any(chosen.values()):
        raise UserError(f"--rows: no row's name contains {' or '.join(names)}")
    return {
        part: [row for row in of_part if row.name not in without]
        for part, of_part in chosen.items()
    }


def measured_rows(json_file: str) -> List[str]:
    """Return the names of the rows that have succeeded, from the file of :func:`run_all`."""
    return [name for name, row in _read(json_file)["rows"].items() if row["status"] == "done"]


def run_all(
    rows: Dict[str, List[Row]], json_file: str, say: Callable[[str], None], seconds: float
) -> bool:
    """Run rows, each in a process with a time limit; return whether all succeeded.

    A row that fails does not stop the others. A row is not started if it could take longer than
    there is left of ``seconds``. The JSON file keeps the results of other rows; the table is the
    same file as ``.md``.
    """
    found = _read(json_file)
    succeeded = True
    end = time.perf_counter() + seconds
    for part, of_part in rows.items():
        for row in of_part:
            say(f"{row.name}: {shlex.join(row.words)}")
            result = _run(row, end - time.perf_counter())
            say(f"  {result['status']}")
            if result["status"] != "done":
                succeeded = False
                say(result["output"])
            if not (result["status"].startswith("not run") and row.name in found["rows"]):
                found["rows"][row.name] = {"part": part, **result}
            with whole_file(json_file) as f:
                f.write(f"{json.dumps(found, indent=1)}\n".encode())
            with whole_file(os.path.splitext(json_file)[0] + ".md") as f:
                f.write(f"{format_table(found)}\n".encode())
    say(format_table(found))
    return succeeded


def _read(json_file: str) -> Dict[str, Any]:
    if not os.path.exists(json_file):
        return {"rows": {}}
    try:
        with open(json_file) as f:
            return {"rows": dict(json.load(f)["rows"])}
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"--json: {json_file} was not written by this program ({e})") from None


def _run(row: Row, seconds_left: float) -> Dict[str, Any]:
    """Return ``status``, the last lines of ``output``, and ``report``."""
    if seconds_left < row.seconds:
        text = f"not run: it may take {row.seconds} s, and {max(seconds_left, 0):.0f} s are left"
        return {"status": text, "output": ""}
    words = list(row.words)
    if "--weights" in words:
        start = words.index("--weights")
        if not (ROOT / words[start + 1]).exists():
            del words[start : start + 2]
    with tempfile.TemporaryDirectory() as folder:
        report = os.path.join(folder, "report.json")
        process = subprocess.Popen(
            [sys.executable, *words, *(["--json", report] if row.has_report else [])],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # so that its workers end with it
        )
        try:
            output, _ = process.communicate(timeout=row.seconds)
            status = f"failed with exit status {process.returncode}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            status = f"stopped at its limit of {row.seconds} s"
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        result = {"status": "done" if process.returncode == 0 else status}
        result["output"] = "\n".join(output.splitlines()[-_LAST_LINES:])
        if os.path.exists(report):
            with open(report) as f:
                result["report"] = json.load(f)
    return result


def format_table(found: Dict[str, Any]) -> str:
    """Return a Markdown table with the first row of each report."""
    lines = ["| measurement | row | ms | times faster | peak memory, GB |", "| --- " * 5 + "|"]
    for name, row in found["rows"].items():
        seconds = row.get("report", {}).get("seconds")
        if not seconds:
            text = row["status"] if row["status"] != "done" else row["output"].splitlines()[-1]
            lines.append(f"| {name} | {text.strip('= ')} | | | |")
            continue
        what = next(iter(seconds))
        times = {n: statistics.median(values) for n, values in seconds[what].items()}
        *others, ours = times
        memory = row["report"].get("memory", {}).get(what, {})
        cells = [
            [f"{n} {1000 * t:.1f}" for n, t in times.items()],
            [f"{n} **{times[n] / times[ours]:.2f}**" for n in others],
            [f"{n} {size / 1e9:.2f}" for n, size in memory.items()],
        ]
        lines.append(f"| {name} | {what} | {' | '.join(map('<br>'.join, cells))} |")
    return "\n".join(lines)
