"""The memory of this process, and copies of images to a GPU."""

import ctypes
import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Dict, Iterator, List

if TYPE_CHECKING:
    import torch


@contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """Pause Python's search for reference cycles while millions of objects are made."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


# Messages of torch on the CPU, of CUDA and of OpenCV, whose errors have no separate type.
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "Insufficient memory")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error means that the memory of the CPU or of a GPU is full."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(text in str(error) for text in _OUT_OF_MEMORY)


# Parameters of mallopt, from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_LARGEST = 2**31 - 1


def reuse_freed_memory() -> bool:
    """Keep freed memory for later allocations of this process instead of returning it.

    glibc's ``malloc`` maps memory for each tensor of about 32 MB or more, and unmaps it when the
    tensor is freed. A detector on the CPU then waits in each image for tens of thousands of pages
    that the system clears one by one, 5 to 10 % of the time of an inference. After this call the
    process stays as large as it once was, until it ends.

    Returns:
        bool: whether the C library supports it; any C library but glibc is left unchanged.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return False
    # glibc before 2.35 refuses such a high threshold.
    is_kept = mallopt(_MMAP_THRESHOLD, _LARGEST) or mallopt(_MMAP_MAX, 0)
    return bool(is_kept and mallopt(_TRIM_THRESHOLD, _LARGEST))


def is_pinned_for(device: "str | torch.device") -> bool:
    """Whether loaders put images for a model on ``device`` into pinned memory."""
    import torch

    return torch.device(device).type == "cuda"


def send_images(batch: List[Dict[str, Any]], device: "torch.device") -> List[Dict[str, Any]]:
    """Start the copies of a batch's images to a GPU without waiting for them.

    Images are copied as they were loaded, mostly uint8, and normalized on the GPU, whose later work
    waits for the copies. An image that no loader has pinned is pinned here. Nothing is done unless
    ``device`` is a GPU.
    """
    if not is_pinned_for(device):
        return batch
    return [{**item, "image": _send(item["image"], device)} for item in batch]


def _send(image: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    return image if image.is_cuda else image.pin_memory().to(device, non_blocking=True)
