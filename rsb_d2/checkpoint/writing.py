"""Writing weights: completely or not at all, plain values only, equal bytes for equal tensors."""

from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.torch
import torch

from ..errors import UserError
from ..files import errors_of_writing, whole_file
from .reading import StateDict

# What torch.load(weights_only=True) reads back as it was.
_PLAIN_TYPES = (
    *(type(None), bool, int, float, complex, str, bytes, bytearray),
    *(torch.Tensor, torch.nn.Parameter, torch.Size, torch.dtype, torch.device),
)


def save_torch(path: str, content: Any) -> None:
    """``torch.save`` to a local file, completely or not at all.

    Args:
        path (str): the file.
        content (Any): what to save.

    Raises:
        UserError: if it cannot be written.
    """
    with whole_file(path) as f, errors_of_writing(path):
        try:
            torch.save(content, f)
        except RuntimeError as e:  # torch closes its archive, which fails again
            if isinstance(e.__context__, (OSError, UserError)):
                raise e.__context__ from None
            raise


def save_weights(path: str, weights: StateDict, **beside: Any) -> None:
    """Write a state dict; the bytes depend only on the names and the tensors.

    Args:
        path (str): ends in ``.pth`` or ``.safetensors``.
        weights (dict[str, Tensor]): what to write.
        beside: more entries of a ``.pth`` file, whose state dict is then its ``"model"``; without
            any, the file is the state dict. Not written to safetensors.

    Raises:
        UserError: for another ending, or if it cannot be written.
    """
    check_ending(path)
    # Copies, as saving a view would save all that it views.
    weights = {n: weights[n].detach().cpu().clone().contiguous() for n in sorted(weights)}
    if path.endswith(".safetensors"):
        with whole_file(path) as f:
            f.write(safetensors.torch.save(weights, metadata={"format": "pt"}))
    else:
        save_torch(path, {"model": weights, **beside} if beside else weights)


def check_ending(path: str) -> None:
    """Raise a :class:`UserError` unless ``path`` ends in ``.pth`` or ``.safetensors``."""
    if not path.endswith((".pth", ".safetensors")):
        raise UserError(f"{path}: the output's name must end in .pth or .safetensors")


def to_plain(value: Any, where: str) -> Any:
    """Copy a value into types that ``torch.load(weights_only=True)`` reads.

    Args:
        value (Any): a checkpoint or a part of one; NumPy's numbers become Python's, its arrays
            tensors, and kinds of ``dict`` such as ``defaultdict`` a ``dict``.
        where (str): what to call it in a message.

    Returns:
        Any: the same in plain types. An ``OrderedDict`` of tensors is returned as it is.

    Raises:
        UserError: if something else is in it.
    """
    if type(value) in _PLAIN_TYPES or isinstance(value, torch.Tensor):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.array(value))
    if isinstance(value, OrderedDict) and all(isinstance(v, torch.Tensor) for v in value.values()):
        return value  # with its _metadata
    if isinstance(value, Mapping):
        kind = Counter if isinstance(value, Counter) else dict
        return kind({to_plain(k, where): to_plain(v, f"{where}.{k}") for k, v in value.items()})
    for kind in (list, tuple, set):
        if isinstance(value, kind):
            return kind(to_plain(v, f"{where}[{i}]") for i, v in enumerate(value))
    raise UserError(
        f"{where} is a {type(value).__module__}.{type(value).__qualname__}, which no checkpoint "
        "can hold: its state_dict must be of tensors, numbers, strings and containers of them"
    )
