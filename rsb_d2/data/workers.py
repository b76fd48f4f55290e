"""Worker processes: how they treat signals, and how they end with the process that they serve.

That process is ``multiprocessing.parent_process()`` with every start method. It is not always the
one above a worker in the process tree: with ``forkserver`` that is the fork server, which lives as
long as any of its workers.
"""

import functools
import multiprocessing
import os
import signal
import threading
import time
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any, Callable, Dict, Iterator, List

from torch.utils.data import DataLoader

_SECONDS_BETWEEN_LOOKS = 0.5

# This process's settings that its workers need, which ``spawn`` and ``forkserver`` do not hand on:
# functions that set them there.
SETTINGS: Dict[str, Callable[[], None]] = {}


class WorkerLoader(DataLoader):
    """A ``DataLoader`` whose workers leave signals to the training, and end when it does."""

    def __init__(self, *args: Any, **kwargs: Any):
        start = functools.partial(_start_worker, list(SETTINGS.values()))
        super().__init__(*args, worker_init_fn=start, **kwargs)

    def __iter__(self) -> Iterator:
        if not self.num_workers:
            return super().__iter__()
        with _signals_held_back():  # until a worker leaves them to the training
            return super().__iter__()


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Block SIGTERM and SIGINT in this process, and so in the workers that it starts meanwhile."""
    method = multiprocessing.get_start_method()
    if method == "forkserver":
        # A server that starts in here would hold them back in all that it ever forks.
        yield
        return
    if method == "spawn":
        resource_tracker.ensure_running()  # its start lets them through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(settings: List[Callable[[], None]], worker_id: int) -> None:
    """Continue until the training, which finishes its iteration first, ends its workers.

    A terminal and a cluster send signals to all processes of a job, the workers among them.
    """
    for set_in_worker in settings:
        set_in_worker()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    by_signal = hasattr(signal, "sigtimedwait")  # not on macOS
    if by_signal:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    end_with_parent(by_signal)


def end_with_parent(by_signal: bool = False) -> None:
    """End this process when the one that it serves has ended for any reason.

    With ``by_signal``, SIGTERM is blocked, and obeyed only if it is from that process.
    """
    threading.Thread(target=_watch, args=(by_signal,), daemon=True).start()


def _watch(by_signal: bool) -> None:
    parent = multiprocessing.parent_process()
    # Where it is above this one, that is checked: of several forked workers, the later ones hold
    # the sentinels of the earlier ones open.
    is_child = os.getppid() == parent.pid
    while os.getppid() == parent.pid if is_child else parent.is_alive():
        if not by_signal:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            continue
        received = signal.sigtimedwait({signal.SIGTERM}, _SECONDS_BETWEEN_LOOKS)
        if received is not None and received.si_pid == parent.pid:
            break
    os._exit(0)
