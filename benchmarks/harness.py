"""Timing by torch.utils.benchmark, peak memory, profiles, and the report."""

import argparse
import contextlib
import importlib
import logging
import multiprocessing
import os
import platform
import re
import resource
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import Compare, Measurement, Timer

from rsb_d2.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Call = Callable[[], Any]


class Different(Exception):
    """The contenders do not compute the same; the text gives the difference."""


def verdict(is_equal: bool, text: str) -> str:
    """Return the text, or raise :class:`Different` with it."""
    if not is_equal:
        raise Different(text)
    return text


class Prepared(NamedTuple):
    """One contender, ready to be measured."""

    calls: Dict[str, Call]  # by row of the table, the function to time
    result: Call  # returns the result that is compared with those of the others


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of all benchmarks."""
    parser.add_argument("--runs", type=positive, default=5, help="measurements of each (5)")
    parser.add_argument("--rows", nargs="+", default=[], help="only the rows of these names")
    parser.add_argument(
        "--cpu-time", action="store_true", help="CPU seconds of all processes, not wall time"
    )
    parser.add_argument(
        "--memory", action="store_true", help="also the peak memory of each in its own process"
    )
    parser.add_argument("--profile", action="store_true", help="also the operators by time")
    parser.add_argument("--json", type=os.path.expanduser, metavar="FILE", help="write all values")


def add_model_arguments(parser: argparse.ArgumentParser, size: str = "640x853") -> None:
    """Add ``--device``, ``--image-size``, ``--batch`` and ``--dtype``."""
    parser.add_argument("--device", default="cpu", type=device, help="cpu, cuda, cuda:1 (cpu)")
    parser.add_argument("--image-size", default=size, type=image_size, help=f"HxW ({size})")
    parser.add_argument("--batch", type=positive, default=1, help="images at a time (1)")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="of ours (float32)")


def positive(text: str) -> int:
    """Parse an integer of 1 or more."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"is {text}; it must be 1 or more")
    return int(text)


def image_size(text: str) -> Tuple[int, int]:
    """Parse height and width, as in ``640x853``."""
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"is {text!r}; write height x width, as in 640x853")
    return tuple(map(int, text.split("x")))


def device(text: str) -> str:
    """Parse a device that torch finds."""
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError):
        raise argparse.ArgumentTypeError(
            f"is {text!r}, but torch finds no such device; write cpu or cuda"
        ) from None
    return text


def run(benchmark: str, args: argparse.Namespace) -> Dict[str, Any]:
    """Compare the results of all contenders of a benchmark, time them in turn, and print tables.

    Returns:
        dict: ``machine``, ``check`` (the sentence about the comparison) and, by row and contender,
        ``seconds`` (list of float, by run) and ``memory`` (bytes).

    Raises:
        Different: if the results differ; nothing is measured then.
        UserError: for a row that does not exist.
    """
    module = importlib.import_module(f"benchmarks.{benchmark}")
    names = module.contenders(args)
    logging.disable(logging.INFO)
    try:
        prepared = {name: module.prepare(args, name) for name in names}
        rows = list(prepared[names[0]].calls)
        if unknown := set(args.rows) - set(rows):
            raise UserError(f"--rows: there is no row {unknown.pop()!r}; the rows are {rows}")
        rows = args.rows or rows
        check = module.check(args, {name: p.result() for name, p in prepared.items()})
        report = {"machine": machine(), "check": check}
        print(", ".join(f"{key} {value}" for key, value in report["machine"].items()))
        print(f"Equal: {check}")
        report["seconds"] = _measure(benchmark, prepared, rows, args)
        if args.profile:
            for name, contender in prepared.items():
                print(f"{name}, {rows[0]}:\n{operator_table(contender.calls[rows[0]])}")
        del prepared
        if args.memory:
            report["memory"] = {
                row: {name: _memory_in_new_process(benchmark, args, name, row) for name in names}
                for row in rows
            }
            for row, memory in report["memory"].items():
                sizes = (f"{name} {size / 2**20:.0f} MiB" for name, size in memory.items())
                print(f"peak memory, {row}: {', '.join(sizes)}")
        return report
    finally:
        logging.disable(logging.NOTSET)


def _measure(
    label: str, prepared: Dict[str, Prepared], rows: List[str], args: argparse.Namespace
) -> Dict[str, Dict[str, List[float]]]:
    """Time the contenders in turn, A B A B, so that a disturbance affects all of them."""
    clock = {"timer": cpu_seconds} if args.cpu_time else {}
    measured: List[Measurement] = []
    seconds = {row: {name: [] for name in prepared} for row in rows}
    for row in rows:
        for _ in range(args.runs):
            for name, contender in prepared.items():
                timer = Timer(
                    "call()",
                    globals={"call": contender.calls[row]},
                    label=f"{label}, {'CPU' if args.cpu_time else 'wall'} time",
                    sub_label=row,
                    description=name,
                    num_threads=torch.get_num_threads(),
                    **clock,
                )
                measured.append(timer.blocked_autorange())  # calls it once before it measures
                seconds[row][name].append(measured[-1].median)
    Compare(measured).print()
    reference, *others = prepared
    for row in rows:
        for name in others:
            # of neighboring measurements
            ratios = [a / b for a, b in zip(seconds[row][reference], seconds[row][name])]
            text = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            print(f"{row}, {reference} / {name}: {text}")
    return seconds


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of the child processes that have ended."""
    return time.process_time() + sum(os.times()[2:4])


def operator_table(call: Call) -> str:
    """Profile a function; on a GPU, torch also warns of every line that waits for the GPU."""
    on_gpu = torch.cuda.is_initialized()
    call()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    try:
        if on_gpu:
            torch.cuda.set_sync_debug_mode("warn")
        with profile(activities=activities) as found:
            call()
    finally:
        if on_gpu:
            torch.cuda.set_sync_debug_mode("default")
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    return found.key_averages().table(sort_by=key, row_limit=15, max_name_column_width=45)


def _memory_in_new_process(benchmark: str, args: argparse.Namespace, name: str, row: str) -> int:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_memory_of, benchmark, args, name, row).result()


def _memory_of(benchmark: str, args: argparse.Namespace, name: str, row: str) -> int:
    call = importlib.import_module(f"benchmarks.{benchmark}").prepare(args, name).calls[row]
    on_gpu = torch.cuda.is_initialized()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")  # resets the peak
    for _ in range(2):
        call()
    if on_gpu:
        return torch.cuda.max_memory_allocated()
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return max(peak_memory(), children * (1 if sys.platform == "darwin" else 1024))


def peak_memory() -> int:
    """Return the peak memory of this process so far, in bytes."""
    try:
        # Not getrusage, whose peak a new process inherits on Linux.
        with open("/proc/self/status") as f:
            return int(re.search(r"VmHWM:\s*(\d+) kB", f.read()).group(1)) * 1024
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def machine() -> Dict[str, Any]:
    """Return the hardware and the versions that a measurement depends on."""
    import detectron2
    import timm
    import torchvision

    found = {
        "CPU": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "Python": platform.python_version(),
        **{m.__name__: m.__version__ for m in (torch, torchvision, detectron2, timm)},
    }
    with contextlib.suppress(OSError, AttributeError):  # not Linux on x86
        with open("/proc/cpuinfo") as f:
            found["CPU"] = re.search(r"model name\s*: (.*)", f.read()).group(1)
    if torch.cuda.is_available():
        found["GPU"] = torch.cuda.get_device_name()
        found["CUDA"], found["cuDNN"] = torch.version.cuda, torch.backends.cudnn.version()
    return found
