"""Counts, without a GPU, where the host would wait for one.

Everything is computed on the CPU. But the model, what is made of it and what is moved to its device
say that they are on ``cuda:0``, so that code that asks takes the path that it takes there; and
whatever would have to wait for the GPU is written down: a number or a list that is read, a copy to
the host, and each operator whose output has a shape that depends on values.
"""

import sys
from collections import Counter
from typing import Any, Tuple

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

GPU, HOST = torch.device("cuda", 0), torch.device("cpu")
_PACKAGES = ("detectron2", "rsb_d2", "timm", "fvcore")

# Operators that copy a number to the host on a GPU, to know how large their output is.
_OF_UNKNOWN_SIZE = {
    "aten::_local_scalar_dense": "item",
    "aten::nonzero": "nonzero",
    "aten::masked_select": "masked_select",
    "aten::_unique2": "unique",
    "aten::unique_dim": "unique",
    "aten::unique_consecutive": "unique",
    "aten::bincount": "bincount",
    "torchvision::nms": "nms",
}
_TO_HOST = ("cpu", "numpy", "tolist", "__array__")


def place() -> str:
    """``module:function`` of the innermost frame that belongs to one of the packages."""
    frame = sys._getframe(1)
    while frame is not None:
        module, function = frame.f_globals.get("__name__", ""), frame.f_code.co_name
        if module == "torch.autograd.graph":
            return "backward"
        # A comprehension is a frame before Python 3.12.
        is_own = module.partition(".")[0] in _PACKAGES and not function.startswith("<")
        if is_own and module != "detectron2.layers.wrappers":
            return f"{module}:{function}"
        frame = frame.f_back
    return "elsewhere"


class _Marks:
    """Which memory is the pretended GPU's."""

    def __init__(self):
        self._storages = {}  # held, as the address of one that is gone may be another's
        self.count: Counter = Counter()

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        self._storages[storage._cdata] = storage

    def has(self, value: Any) -> bool:
        if not isinstance(value, torch.Tensor):
            return False
        return value.untyped_storage()._cdata in self._storages

    def has_any(self, *values: Any) -> bool:
        return any(self.has(value) for value in tree_flatten(values)[0])

    def note(self, kind: str) -> None:
        self.count[f"{place()} {kind}"] += 1


class _Operators(TorchDispatchMode):
    def __init__(self, marks: _Marks):
        super().__init__()
        self.marks = marks

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not self.marks.has_any(args, kwargs):
            return func(*args, **kwargs)
        name = func.name().partition(".")[0]
        kind = _OF_UNKNOWN_SIZE.get(name)
        if name in ("aten::index", "aten::index_put", "aten::index_put_"):
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            kind = "mask" if masks else None
        if name == "aten::repeat_interleave" and kwargs.get("output_size") is None:
            kind = "repeat_interleave"
        if kind:
            self.marks.note(kind)
        output = func(*args, **kwargs)
        for value in tree_flatten(output)[0]:
            if isinstance(value, torch.Tensor):
                self.marks.add(value)
        return output


class PretendedGPU(TorchFunctionMode):
    """In its context ``cuda:0`` is there, and ``count`` says by place and kind who waits for it.

    Attributes:
        count (Counter[str]): of ``"module:function kind"``.
    """

    def __init__(self, *models: torch.nn.Module):
        super().__init__()
        self._marks = _Marks()
        self._operators = _Operators(self._marks)
        for model in models:
            for tensor in (*model.parameters(), *model.buffers()):
                self._marks.add(tensor)

    @property
    def count(self) -> Counter:
        return self._marks.count

    def __enter__(self):
        self._operators.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        return self._operators.__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, marks = kwargs or {}, self._marks
        name = getattr(func, "__name__", "")
        if name == "__get__":
            return self._attribute(func, args)
        if name in _TO_HOST and marks.has(args[0]):
            marks.note(name)
            if name == "cpu":
                return _copy(args[0])
            return func(*args, **kwargs)
        (args, kwargs), target = _without_gpu(args, kwargs)
        if name == "to":
            return self._to(func, args, kwargs, target)
        output = func(*args, **kwargs)
        is_new = name in ("new_tensor", "new_empty") and marks.has(args[0])
        if target == GPU or is_new:
            tree_map(lambda x: marks.add(x) if isinstance(x, torch.Tensor) else None, output)
        return output

    def _attribute(self, func, args):
        value = func(*args)
        if not isinstance(args[0], torch.Tensor) or not self._marks.has(args[0]):
            return value
        if isinstance(value, torch.device):
            return GPU
        attribute = getattr(func.__self__, "__name__", "")
        return {"is_cuda": True, "is_cpu": False}.get(attribute, value)

    def _to(self, func, args, kwargs, target):
        tensor, marks = args[0], self._marks
        other = next(
            (x for x in (*args[1:], *kwargs.values()) if isinstance(x, torch.Tensor)), None
        )
        if other is not None:
            target = GPU if marks.has(other) else HOST
        was_there = marks.has(tensor)
        if target is None or was_there == (target == GPU):
            output = func(*args, **kwargs)
            if was_there:
                marks.add(output)
            return output
        if was_there:
            marks.note("to cpu")
        output = _copy(func(*args, **kwargs))
        if not was_there:
            marks.add(output)
        return output


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in the host's memory, of which nothing is known yet."""
    with torch._C.DisableTorchFunction(), torch.utils._python_dispatch._disable_current_modes():
        return tensor.clone()


def _without_gpu(args: tuple, kwargs: dict) -> Tuple[tuple, Any]:
    """Arguments with the CPU in the place of a device, and the device that was asked for."""
    found = []

    def replace(value: Any) -> Any:
        if isinstance(value, torch.device):
            found.append(value)
            return HOST
        if isinstance(value, str) and value.partition(":")[0] in ("cuda", "cpu"):
            found.append(torch.device(value))
            return "cpu"
        return value

    args = tuple(replace(a) for a in args)
    kwargs = {k: replace(v) for k, v in kwargs.items()}
    target = None
    if found:
        target = GPU if found[0].type == "cuda" else HOST
    return (args, kwargs), target
