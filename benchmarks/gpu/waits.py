"""Where a program waits for its GPU, and what it copies to and from it."""

import traceback
import warnings
from collections import Counter
from typing import Any, Callable, Iterable, List, Tuple

import torch

_ROWS, _WIDTH = 15, 90  # of the table of kernels
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
_DEBUG_MESSAGE = "called a synchronizing"  # of torch's set_sync_debug_mode
_PLACES = 30


def kernel_table(events: Iterable[Any]) -> str:
    """Kernels by the time that they take.

    Args:
        events (iterable): of torch's profiler, with ``name``, ``device_type`` and ``time_range``.

    Returns:
        str: a line for each: microseconds, how often, its name.
    """
    times, numbers = Counter(), Counter()
    for event in _on_device(events):
        times[event.name] += event.time_range.elapsed_us()
        numbers[event.name] += 1
    lines = [
        f"{time:10.0f} us {numbers[name]:5d} x  {name[:_WIDTH]}"
        for name, time in times.most_common(_ROWS)
    ]
    head = f"kernels and copies: {sum(numbers.values())}, {sum(times.values()):.0f} us"
    return "\n".join([head, *lines])


def count_waits(events: Iterable[Any]) -> Tuple[Counter, Counter]:
    """Count what the profiler saw of waiting and copying.

    Args:
        events (iterable): of torch's profiler.

    Returns:
        Counter, Counter: of the calls that wait for the GPU, and of copies by their kinds, as
        ``"Memcpy DtoH (Device -> Pageable)"``.
    """
    events = list(events)
    waits = Counter(e.name for e in events if e.name in _WAITS)
    copies = Counter(e.name for e in _on_device(events) if e.name.startswith("Memcpy"))
    return waits, copies


def _on_device(events: Iterable[Any]) -> List[Any]:
    return [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]


def places_of_waits(call: Callable[[], Any]) -> Counter:
    """Where in Python a call waits for the GPU, as torch's ``set_sync_debug_mode`` tells.

    It knows of ``.item()``, ``nonzero``, copies to the CPU and from pageable memory and the like.

    Args:
        call (callable): without arguments.

    Returns:
        Counter: of places, as ``"detectron2/modeling/poolers.py:245 forward"``: the innermost one
        outside of torch.
    """
    before = torch.cuda.get_sync_debug_mode()
    with recorded_places(_DEBUG_MESSAGE) as places:
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return places


class recorded_places(warnings.catch_warnings):
    """Count from where a warning is given, each time, rather than show it.

    Args:
        message (str): part of its text; other warnings are dropped.
    """

    def __init__(self, message: str):
        super().__init__()
        self._message = message
        self._places = Counter()

    def __enter__(self) -> Counter:
        super().__enter__()
        warnings.simplefilter("always")
        warnings.showwarning = self._show
        return self._places

    def _show(self, message: Any, *args: Any, **kwargs: Any) -> None:
        if self._message in str(message):
            self._places[_place()] += 1


def _place() -> str:
    for frame in reversed(traceback.extract_stack(limit=40)):
        path = frame.filename.replace("\\", "/")
        if not any(part in path for part in ("/torch/", "/warnings.py", "/gpu/waits.py")):
            return f"{'/'.join(path.split('/')[-3:])}:{frame.lineno} {frame.name}"
    return "torch"


def waits_table(call: Callable[[], Any], events: Iterable[Any]) -> str:
    """What :func:`count_waits` and :func:`places_of_waits` find in one call.

    Args:
        call (callable): without arguments; it is called once more.
        events (iterable): of torch's profiler, of such a call.

    Returns:
        str: lines of text.
    """
    waits, copies = count_waits(events)
    places = places_of_waits(call)
    lines = [f"{number:5d} x  {name}" for name, number in [*waits.items(), *copies.items()]]
    lines.append(f"the host waits for the GPU at {sum(places.values())} calls, in Python at:")
    lines += [f"{number:5d} x  {place}" for place, number in places.most_common(_PLACES)]
    return "\n".join(lines)
