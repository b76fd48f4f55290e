"""What is measured beside the time: the operators, and the peak memory of a fresh process."""

import argparse
import gc
import multiprocessing
import re
import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Callable

import torch
from torch.profiler import ProfilerActivity, profile

from .gpu.waits import kernel_table, waits_table

_ROWS = 15  # of the table of operators
_WIDTH = 45  # of their names

# From the arguments of a sub-command and the name of a contender to what is to be measured.
Prepare = Callable[[argparse.Namespace, str], Callable[[], Any]]


def operator_table(call: Callable[[], Any], device: torch.device) -> str:
    """Profile one call.

    Args:
        call (callable): without arguments; what it returns is dropped.
        device (torch.device): where its tensors are; on a GPU its kernels' time is what counts.

    Returns:
        str: a table of the operators that take the longest by themselves; on a GPU one of its
        kernels, and :func:`benchmarks.gpu.waits.waits_table`.
    """
    if device.type == "cuda":
        call()  # so that what is done once is not in the table
    activities, key = [ProfilerActivity.CPU], "self_cpu_time_total"
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
        key = "self_device_time_total"
    with profile(activities=activities) as found:
        call()
    averages = found.key_averages()
    table = averages.table(sort_by=key, row_limit=_ROWS, max_name_column_width=_WIDTH)
    if device.type != "cuda":
        return table
    return "\n".join([table, kernel_table(found.events()), waits_table(call, found.events())])


def peak_memory_alone(
    prepare: Prepare,
    args: argparse.Namespace,
    name: str,
    *,
    device: str | torch.device = "cpu",
    calls: int = 2,
) -> int:
    """Peak memory of one contender in a process of its own.

    Args:
        prepare (callable): a function of a module, as it is looked up there by the process.
        args (Namespace): its first argument.
        name (str): its second.
        device (str or torch.device): on a GPU the process is this one, which the allocator knows
            enough of: what is prepared counts as far as it is kept, and what was there before does
            not. On the CPU the whole process counts.
        calls (int): how often what it returns is called.

    Returns:
        int: bytes.
    """
    if torch.device(device).type == "cuda":
        return _peak_memory_on_gpu(prepare, args, name, device, calls)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_peak_memory_of, prepare, args, name, calls).result()


def _peak_memory_of(prepare: Prepare, args: argparse.Namespace, name: str, calls: int) -> int:
    call = prepare(args, name)
    for _ in range(calls):
        call()
    return peak_memory()


def _peak_memory_on_gpu(
    prepare: Prepare, args: argparse.Namespace, name: str, device: str | torch.device, calls: int
) -> int:
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    call = prepare(args, name)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    for _ in range(calls):
        call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def peak_memory() -> int:
    """The largest memory of this process so far, in bytes."""
    try:
        # Not getrusage where it can be helped: Linux hands its peak down to child processes.
        with open("/proc/self/status") as f:
            return int(re.search(r"VmHWM:\s*(\d+) kB", f.read()).group(1)) * 1024
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
