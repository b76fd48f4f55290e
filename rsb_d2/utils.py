"""Helpers that several folders of the core share."""

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside a wrapper for data parallelism, or the model itself."""
    return model.module if isinstance(model, (DistributedDataParallel, DataParallel)) else model
