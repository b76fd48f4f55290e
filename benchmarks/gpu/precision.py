"""Whether float32 is computed in TF32, for a part of a program."""

from contextlib import contextmanager
from typing import Iterator

import torch


@contextmanager
def tf32(enabled: bool) -> Iterator[None]:
    """Compute convolutions and matrix products of float32 in TF32, or do not.

    torch's own default is one of each: convolutions in TF32, matrix products not. On the CPU
    nothing changes.

    Args:
        enabled (bool): for both.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = enabled
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
