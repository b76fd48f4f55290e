"""The random state of a process: restored, seeded, and stored in checkpoints."""

import random
from contextlib import contextmanager
from typing import Any, Dict, Iterator

import numpy as np
import torch


@contextmanager
def random_state_kept(with_gpu: bool = True) -> Iterator[None]:
    """Restore the random state of Python, NumPy and torch (CPU, current GPU) at the end.

    Args:
        with_gpu (bool): False does not touch the GPU; required in loader workers.
    """
    devices = [torch.cuda.current_device()] if with_gpu and torch.cuda.is_available() else []
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def seed_cpu(*seed: int) -> None:
    """Seed Python, NumPy and torch's CPU generator, not the GPU's.

    The numbers, from 0 on, are mixed as by ``numpy.random.SeedSequence``.
    """
    words = np.random.SeedSequence(seed).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.default_generator.manual_seed(int(words[2]))


def random_state() -> Dict[str, Any]:
    """Return the random state of this process, for :func:`set_random_state`.

    It is that of Python, NumPy, torch's CPU generator, and of each GPU that this process sees and
    uses, in types that ``torch.load(weights_only=True)`` reads.
    """
    name, keys, *rest = np.random.get_state()
    uses_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": [state.cpu() for state in torch.cuda.get_rng_state_all()] if uses_gpu else [],
    }


def set_random_state(state: Dict[str, Any]) -> None:
    """Restore a state of :func:`random_state`; missing GPUs are left out."""
    name, keys, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        for device, gpu_state in list(enumerate(state["cuda"]))[: torch.cuda.device_count()]:
            torch.cuda.set_rng_state(gpu_state, device)
