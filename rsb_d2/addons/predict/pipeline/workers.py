"""What every process beside the one with the model begins with."""

import os
import resource
import signal
import threading
import time
from contextlib import suppress

import cv2
import torch


def become_worker(worker_id: int = 0) -> None:
    """Leave signals of the terminal to the parent, and end with it, whatever ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Threads of a pool do not outlive a fork.
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def allow_open_files() -> None:
    """As many as the system lets this process have: each image on its way between two is one."""
    with suppress(OSError, ValueError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


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
