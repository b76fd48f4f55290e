"""The devices that tests run on, and how near to one another their results are.

A test that takes the fixture ``device`` runs on the CPU and, marked ``gpu``, on the GPU where there
is one. ``RSB_TEST_DEVICE=cpu`` lets the marked ones run on the CPU instead.
"""

import os
from contextlib import contextmanager

import pytest
import torch

OVERRIDE = "RSB_TEST_DEVICE"

# (rtol, atol) of the same numbers computed in another order. A GPU sums in blocks, and cuDNN takes
# other algorithms for other layouts, such as Winograd's, whose error is ten times as large. One
# unit in the last place is 2**-8 of a bfloat16 and 2**-11 of a float16; a network has many layers.
_TOLERANCES = {
    ("cpu", torch.float64): (1e-9, 1e-9),
    ("cpu", torch.float32): (1e-5, 1e-5),
    ("cpu", torch.bfloat16): (2e-2, 2e-2),
    ("cpu", torch.float16): (4e-3, 4e-3),
    ("cuda", torch.float64): (1e-9, 1e-9),
    ("cuda", torch.float32): (1e-4, 1e-4),
    ("cuda", torch.bfloat16): (2e-2, 2e-2),
    ("cuda", torch.float16): (4e-3, 4e-3),
}


def device_params() -> list:
    """The parameters of the fixture ``device``: the CPU, and what is marked ``gpu``, if any."""
    params = [pytest.param("cpu", id="cpu")]
    gpu = os.environ.get(OVERRIDE) or ("cuda" if torch.cuda.is_available() else None)
    if gpu:
        params.append(pytest.param(gpu, id="gpu", marks=pytest.mark.gpu))
    return params


def tolerance(device: str, dtype: torch.dtype = torch.float32, times: float = 1) -> dict:
    """``rtol`` and ``atol`` of what is the same but for the order of its sums.

    Args:
        device (str): of the fixture ``device``.
        dtype (torch.dtype): that is computed in.
        times (float): for what magnifies the error, such as a deep network.
    """
    rtol, atol = _TOLERANCES[torch.device(device).type, dtype]
    return {"rtol": times * rtol, "atol": times * atol}


def check_same(found: torch.Tensor, expected: torch.Tensor, name: str = "") -> None:
    """The same bit for bit on the CPU, on a GPU but for rounding.

    There a kernel is chosen by layout, free memory and whether gradients are needed.
    """
    if expected.device.type == "cpu":
        assert torch.equal(found, expected), name
    else:
        scale = expected.abs().max().item() if expected.numel() else 1.0
        near = tolerance("cuda", expected.dtype)
        torch.testing.assert_close(found, expected, rtol=near["rtol"], atol=near["atol"] * scale)


def compute_exactly() -> None:
    """No TF32, and cuDNN's deterministic algorithms, none of which is chosen by its time."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


@contextmanager
def reproducible(device: str):
    """Let two runs on a GPU give the same bits, as they do on the CPU.

    torch then adds up gradients in a fixed order, and torchvision computes RoIAlign by formulas,
    as its own kernel's backward pass adds atomically. What has no such kernel says so in a warning.
    cuBLAS needs CUBLAS_WORKSPACE_CONFIG as well, which tests/conftest.py sets before it starts.
    """
    if torch.device(device).type == "cpu":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
