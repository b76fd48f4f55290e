"""Timing two ways of doing the same in turn: A B A B, after a warm-up."""

import os
import re
import statistics
import sys
import time
from typing import Any, Callable, Dict, List

import torch


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
        warmup (int): calls of each before them, which are not timed.
        device (str or torch.device): a GPU is timed with events, so that it is waited for.

    Returns:
        dict[str, dict]: for each contender what :func:`summarise` says of its seconds.
    """
    for _ in range(warmup):
        for call in contenders.values():
            seconds_of(call, device)
    seconds: Dict[str, List[float]] = {name: [] for name in contenders}
    for _ in range(runs):
        for name, call in contenders.items():
            seconds[name].append(seconds_of(call, device))
    return {name: summarise(values) for name, values in seconds.items()}


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
