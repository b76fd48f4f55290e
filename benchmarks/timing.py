"""Timing two ways of doing the same in turn: A B A B, after a warm-up."""

import os
import re
import statistics
import sys
import time
from typing import Any, Callable, Dict, List

import torch

# When a GPU's clock and caches are warm: the median of so many calls changes by less than this part
# of it, but for at most so long.
_STEADY_CALLS, _STEADY_CHANGE, _WARM_UP_SECONDS = 5, 0.02, 15.0


def measure(
    contenders: Dict[str, Callable[[], Any]],
    runs: int,
    warmup: int = 1,
    device: str | torch.device = "cpu",
) -> Dict[str, Dict[str, Any]]:
    """Time the contenders in turn: each once, then each once more, and so on.

    What disturbs the machine for a while thus disturbs all of them alike. An exception of one
    ends the measurement.

    Args:
        contenders (dict[str, callable]): by name; called without arguments.
        runs (int): timed calls of each, 1 or more.
        warmup (int): calls of each before them, which are not timed; at least so many on a GPU,
            where they go on until :func:`are_steady`, for at most 15 seconds.
        device (str or torch.device): a GPU is timed with events, so that it is waited for.

    Returns:
        dict[str, dict]: for each contender what :func:`summarise` says of its seconds; on a GPU
        with ``"warmup"`` (int), the calls before them, and ``"steady"`` (bool), whether they were
        steady in the end.
    """
    is_gpu = torch.device(device).type == "cuda"
    before: Dict[str, List[float]] = {name: [] for name in contenders}
    start, is_steady = time.perf_counter(), False
    while not is_steady:
        calls = min(map(len, before.values()))
        late = time.perf_counter() - start > _WARM_UP_SECONDS
        if calls >= warmup and (not is_gpu or late):
            break
        for name, call in contenders.items():
            before[name].append(seconds_of(call, device))
        is_steady = is_gpu and calls + 1 >= warmup and all(map(are_steady, before.values()))
    seconds: Dict[str, List[float]] = {name: [] for name in contenders}
    for _ in range(runs):
        for name, call in contenders.items():
            seconds[name].append(seconds_of(call, device))
    found = {name: summarise(values) for name, values in seconds.items()}
    if is_gpu:
        for name, values in before.items():
            found[name] |= {"warmup": len(values), "steady": are_steady(values)}
    return found


def are_steady(values: List[float]) -> bool:
    """Whether the median of the last five calls is within 2 % of that of the five before.

    Args:
        values (list[float]): seconds of calls, in order.
    """
    if len(values) < 2 * _STEADY_CALLS:
        return False
    last = statistics.median(values[-_STEADY_CALLS:])
    before = statistics.median(values[-2 * _STEADY_CALLS : -_STEADY_CALLS])
    return abs(last - before) < _STEADY_CHANGE * before


def seconds_of(call: Callable[[], Any], device: str | torch.device = "cpu") -> float:
    """Time one call.

    Args:
        call (callable): without arguments; what it returns is dropped.
        device (str or torch.device): where its tensors are.

    Returns:
        float: seconds.
    """
    if torch.device(device).type != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000


def summarise(values: List[float]) -> Dict[str, Any]:
    """The median, the spread and the values themselves.

    Args:
        values (list[float]): one or more.

    Returns:
        dict: ``median``, ``min``, ``max`` (float) and ``values``, in the order of measurement.
    """
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "values": list(values),
    }


def ratio(stock: Dict[str, Any], ours: Dict[str, Any]) -> Dict[str, Any]:
    """How many times less ``ours`` is, pair by pair.

    Args:
        stock, ours (dict): of :func:`summarise`, from the same :func:`measure`.

    Returns:
        dict: :func:`summarise` of the ratio of each pair, stock / ours.
    """
    return summarise([a / b for a, b in zip(stock["values"], ours["values"])])


def machine(device: str | torch.device = "cpu") -> Dict[str, Any]:
    """What a measurement depends on.

    Args:
        device (str or torch.device): that is measured.

    Returns:
        dict[str, str or int]: processor, threads, GPU and versions.
    """
    import detectron2
    import timm
    import torchvision

    found = {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0,
        "threads": torch.get_num_threads(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "detectron2": detectron2.__version__,
        "timm": timm.__version__,
    }
    if torch.device(device).type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
        found["cuda"], found["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
    return found


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as f:
            text = f.read()
    except OSError:
        return "unknown"
    name = re.search(r"model name\s*: (.*)", text)
    flags = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {f}" in text]
    return ", ".join([name.group(1) if name else "unknown", *flags])
