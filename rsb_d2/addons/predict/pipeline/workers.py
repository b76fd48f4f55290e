"""What every process beside the one with the model begins with."""

import os
import resource
import signal
from contextlib import contextmanager, suppress
from typing import Iterator

import cv2
import torch

from ....data.workers import end_with_parent


def become_worker(worker_id: int = 0) -> None:
    """Leave signals of the terminal to the parent, and end with it, whatever ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Threads of a pool do not outlive a fork.
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    end_with_parent()


@contextmanager
def many_open_files() -> Iterator[None]:
    """Open as many as the system lets this process have: each image on its way between two is one.

    The limit is afterwards what it was.
    """
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    _, most = before
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        yield
    finally:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, before)


def default_workers(num_images: int, num_processes: int) -> int:
    """How many processes read: none where it would take longer to start them.

    Args:
        num_images (int): of this process.
        num_processes (int): that share the cores of this machine.
    """
    if num_images < 16:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(4, cores // num_processes - 1))
