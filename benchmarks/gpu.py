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
from typing import Any, Callable, Dict, List, NamedTuple

from rsb_d2.errors import UserError
from rsb_d2.files import whole_file

ROOT = Path(__file__).parents[1]
PART_SECONDS = 480  # of all rows of a part together
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
    weights = f"{_SAMPLE_OUTPUT}/model_final.pth"
    weights = f"--weights {weights}" if (ROOT / weights).exists() else ""
    low, graphs = "--dtype bfloat16", f"{weights} --compile reduce-overhead"
    on_device, large = f"--device {device}", f"--device {device} --image-size 800x1333"
    train = f"--config-file configs/frcnn_rsb_sample.yaml MODEL.DEVICE {device}"
    parts = {
        "tests": [Row("tests", "-m pytest -q -m gpu --durations=10".split(), PART_SECONDS)],
        "train": [
            Row("train, its data", ["tools/sample_data.py", "pictures"], 60),
            Row("train", f"train_net.py {train} OUTPUT_DIR {_SAMPLE_OUTPUT}".split(), 300),
        ],
    }

    def add(part: str, benchmark: str, seconds: int, common: str, kinds: Dict[str, str]) -> None:
        for kind, words in kinds.items():
            command = ["tools/benchmark.py", benchmark, *f"{common} {words} --memory".split()]
            parts.setdefault(part, []).append(Row(f"{benchmark} {kind}", command, seconds))

    for n in (1, 8):
        kinds = {
            f"bfloat16, graphs x{n}": f"{low} {graphs}",
            f"bfloat16 x{n}": f"{low} {weights}",
            f"float32 x{n}": "",
            f"float16, graphs x{n}": f"--dtype float16 {graphs}",
            f"bfloat16, compiled x{n}": f"{low} {weights} --compile",
        }
        add("inference", "inference", 120, f"{large} --batch {n} --runs 20", kinds)
    in_training = {"bfloat16": low, "float32": "", "bfloat16, compiled": f"{low} --compile"}
    for n in (2, 16):
        kinds = {f"{kind} x{n}": words for kind, words in in_training.items()}
        add("training", "training", 180, f"{large} --batch {n} --runs 10", kinds)
    kinds = {**in_training, "bfloat16": f"{low} --loader-workers 8", "TF32": "--tf32"}
    add("pretraining", "pretraining", 150, f"{on_device} --batch 256 --runs 10", kinds)
    words = f"{on_device} {low} --images 64 --batch 8 --workers 4"
    add("prediction", "prediction", 180, words, {"bfloat16": ""})
    add("evaluation", "evaluation", 240, "--images 2000 --runs 3", {"x2000": ""})
    common = f"{large} --runs 5 --profile {low}"
    add("profile", "inference", 120, common, {"profile": graphs})
    add("profile", "training", 150, common, {"profile": "--batch 2"})
    return parts


def choose_rows(parts: List[str], names: List[str], device: str) -> Dict[str, List[Row]]:
    """Return the rows of some parts whose names contain one of some words; no words for all."""
    rows = rows_of_parts(device)
    if unknown := [part for part in parts if part not in rows]:
        raise UserError(f"there is no part {unknown[0]!r}; the parts are {', '.join(rows)}")
    chosen = {
        part: [r for r in rows[part] if not names or any(n in r.name for n in names)]
        for part in parts or rows
    }
    if not any(chosen.values()):
        raise UserError(f"--rows: no row's name contains {' or '.join(names)}")
    return chosen


def run_all(rows: Dict[str, List[Row]], json_file: str, say: Callable[[str], None]) -> bool:
    """Run rows, each in a process with a time limit; return whether all succeeded.

    A row that fails does not stop the others. The JSON file keeps the results of other rows; the
    table is the same file as ``.md``.
    """
    found = _read(json_file)
    succeeded = True
    for part, of_part in rows.items():
        end = time.perf_counter() + PART_SECONDS
        for row in of_part:
            say(f"{row.name}: {shlex.join(row.words)}")
            result = _run(row, min(row.seconds, end - time.perf_counter()))
            say(f"  {result['status']}")
            if result["status"] != "done":
                succeeded = False
                say(result["output"])
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


def _run(row: Row, limit: float) -> Dict[str, Any]:
    """Return ``status``, the last lines of ``output``, and ``report``."""
    if limit < 1:
        return {"status": "not run: the time of its part is over", "output": ""}
    with tempfile.TemporaryDirectory() as folder:
        report = os.path.join(folder, "report.json")
        process = subprocess.Popen(
            [sys.executable, *row.words, *(["--json", report] if row.has_report else [])],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # so that its workers end with it
        )
        try:
            output, _ = process.communicate(timeout=limit)
            status = f"failed with exit status {process.returncode}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            status = f"stopped at its limit of {limit:.0f} s"
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
