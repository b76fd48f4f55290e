"""Rows run one after the other; what they found goes into one JSON file as it comes."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any, Callable, Dict, Iterable, List

import torch

from rsb_d2.errors import UserError
from rsb_d2.files import whole_file

from ..timing import machine
from .rows import Row, rows_of_parts
from .table import format_table

_LAST_LINES = 25  # of the output of a row that failed
_PART_SECONDS = 480  # of all rows of a part together
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def check_gpu(device: str) -> None:
    """Refuse to go on without a GPU.

    Args:
        device (str): that the rows run on; what is not a GPU is there.

    Raises:
        UserError: if it is a GPU and torch finds none.
    """
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "torch finds no GPU here, so there is nothing to measure; what needs none is measured "
            "by tools/benchmark.py"
        )


def choose_rows(parts: Iterable[str], names: Iterable[str], device: str) -> Dict[str, List[Row]]:
    """The rows of some parts.

    Args:
        parts (iterable of str): names of parts; all where there are none.
        names (iterable of str): only rows whose name has one of these in it; all where there are
            none.
        device (str): to run them on.

    Returns:
        dict[str, list[Row]]: by part.

    Raises:
        UserError: if there is no such part or no such row.
    """
    rows, parts, names = rows_of_parts(device, _ROOT), list(parts), list(names)
    unknown = [part for part in parts if part not in rows]
    if unknown:
        raise UserError(f"there is no part {unknown[0]!r}; write some of {', '.join(rows)}")
    chosen = {
        part: [r for r in found if not names or any(name in r.name for name in names)]
        for part, found in rows.items()
        if not parts or part in parts
    }
    if not any(chosen.values()):
        raise UserError(f"--rows: no row's name has {' or '.join(names)} in it")
    return {part: found for part, found in chosen.items() if found}


def run_all(
    rows: Dict[str, List[Row]],
    json_file: str,
    device: str,
    say: Callable[[str], None] = print,
) -> bool:
    """Run rows, each in a process of its own with its time limit; one that fails stops no other.

    Args:
        rows (dict[str, list[Row]]): by part, which has 8 minutes.
        json_file (str): what is known of other rows stays in it; the table is beside it, with the
            suffix ``.md``.
        device (str): that is measured.
        say (callable): is told each line of progress, and the table in the end.

    Returns:
        bool: whether all of them ended well.
    """
    found = _read(json_file)
    found["machine"] = machine(device)
    total = sum(map(len, rows.values()))
    done, is_good = 0, True
    for part, of_part in rows.items():
        end = time.perf_counter() + _PART_SECONDS
        for row in of_part:
            done += 1
            say(f"[{done}/{total}] {row.name}: {shlex.join(row.words)}")
            result = {"part": part, "command": shlex.join(row.words), **_run(row, end)}
            found["rows"][row.name] = result
            _write(json_file, found)
            is_good &= result["status"] == "done"
            say(f"  {result['status']} after {result['seconds']:.0f} s")
            if result["status"] != "done":
                say("\n".join(f"  | {line}" for line in result["output"]))
    say(format_table(found))
    return is_good


def _read(json_file: str) -> Dict[str, Any]:
    if not os.path.exists(json_file):
        return {"rows": {}}
    try:
        with open(json_file) as f:
            found = json.load(f)
        return {**found, "rows": dict(found["rows"])}
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(
            f"--json: {json_file} is no file of this program ({e}); remove it"
        ) from None


def _write(json_file: str, found: Dict[str, Any]) -> None:
    for path, text in (
        (json_file, json.dumps(found, indent=1) + "\n"),
        (os.path.splitext(json_file)[0] + ".md", format_table(found) + "\n"),
    ):
        with whole_file(path) as f:
            f.write(text.encode())


def _run(row: Row, end: float) -> Dict[str, Any]:
    """``status``, ``seconds`` and ``report``, or the last lines of the ``output``."""
    start = time.perf_counter()
    limit = min(row.seconds, int(end - start))
    if limit < 1:
        return {"status": "not run: the time of its part is over", "seconds": 0.0, "output": []}
    with tempfile.TemporaryDirectory() as folder:
        report = os.path.join(folder, "report.json")
        words = [sys.executable, *row.words, *(["--json", report] if row.has_report else [])]
        status, output = _call(words, limit)
        result = {"status": status, "seconds": time.perf_counter() - start}
        lines = [line for line in re.split(r"[\r\n]+", output) if line.strip()]
        if os.path.exists(report):
            with open(report) as f:
                result["report"] = json.load(f)
        if status != "done" or not row.has_report:
            result["output"] = lines[-_LAST_LINES:]
    return result


def _call(words: List[str], seconds: int) -> tuple:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        words,
        cwd=_ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that its workers end with it
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        return f"stopped at its limit of {seconds} s", output
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    code = process.returncode
    return "done" if code == 0 else f"failed with exit status {code}", output
