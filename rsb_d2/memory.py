"""The memory of this process: Python's millions of records, and large tensors on the CPU."""

import ctypes
import gc
from contextlib import contextmanager
from typing import Iterator

import torch


@contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """Spare Python looking for cycles among a million objects, again and again; there are none."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


# In messages of torch on the CPU, of CUDA and of OpenCV, whose errors have no type of their own.
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "Insufficient memory")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that there is too little memory, of the CPU or of a GPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(text in str(error) for text in _OUT_OF_MEMORY)


# Parameters of mallopt, of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_LARGEST = 2**31 - 1


def reuse_freed_memory() -> bool:
    """Keep what is freed for what this process allocates next, rather than hand it back.

    glibc's ``malloc`` asks the system for each tensor of some 32 MB or more, and hands it back when
    it is freed. So a detector on the CPU waits in each image for tens of thousands of pages, which
    the system finds and clears one by one; that is 5 to 10 % of the time of an inference. With this
    a process stays as large as it once was. It holds for the whole process, until it ends.

    Returns:
        bool: whether the C library does so; with another one than glibc nothing is changed.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # of macOS, musl, Windows
        return False
    # A glibc before 2.35 refuses so high a threshold.
    is_kept = mallopt(_MMAP_THRESHOLD, _LARGEST) or mallopt(_MMAP_MAX, 0)
    return bool(is_kept and mallopt(_TRIM_THRESHOLD, _LARGEST))
