"""A GPU whose tensors are computed on the CPU, which counts how often the host waits for it."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda:0")
# Their results are Python numbers, or have a shape that depends on values.
_READING = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "equal", "is_nonzero")
_READING += ("repeat_interleave.Tensor", "bincount", "torchvision::nms")

_COPYING = ("aten._to_copy.default", "aten.copy_.default")


class OnGPU(torch.Tensor):
    """A tensor that says it is on the GPU; ``values`` are on the CPU."""

    @staticmethod
    def __new__(cls, values):
        return torch.Tensor._make_wrapper_subclass(
            *(cls, values.shape, values.stride(), values.storage_offset()),
            dtype=values.dtype,
            device=GPU,
        )

    def __init__(self, values):
        self.values = values

    def __repr__(self):
        return f"OnGPU({tuple(self.shape)})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise AssertionError(f"{function} outside of SimulatedGPU")


class _Event:
    def __init__(self, gpu):
        self._gpu = gpu

    def record(self, stream):
        assert stream is self._gpu
        self._pointers = list(self._gpu._on_the_way)

    def synchronize(self):
        self._gpu.arrived("event", self._pointers)


def _values(x):
    return x.values if isinstance(x, OnGPU) else x


def _is_reading(name, args):
    if name.startswith("aten.index.Tensor"):
        return any(x is not None and x.dtype == torch.bool for x in args[1])
    return any(part in name for part in _READING)


class SimulatedGPU(TorchDispatchMode):
    """Computes on the CPU; ``waits`` are the operators and calls for which the host waits."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.waits = []
        self._pinned = []
        self._on_the_way = []  # memory that must not be read before the next synchronization
        torch._C._ensureCUDADeviceGuardSet()
        monkeypatch.setattr(torch.backends.cudnn, "enabled", False)  # as the CPU has none
        monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: self)
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: self._pin(x))
        monkeypatch.setattr(torch.cuda, "Event", lambda: _Event(self))
        to_list = torch.Tensor.tolist
        monkeypatch.setattr(torch.Tensor, "tolist", lambda x: to_list(self._read(x)))

    def synchronize(self):
        """As of the stream."""
        self.arrived("synchronize", list(self._on_the_way))

    def arrived(self, name, pointers):
        self.waits.append(name)
        self._on_the_way = [p for p in self._on_the_way if p not in pointers]

    def _pin(self, x):
        self._pinned.append(x.clone())
        return self._pinned[-1]

    def _read(self, x):
        if isinstance(x, OnGPU):
            self.waits.append("tolist")
        self._check([_values(x)])
        return _values(x)

    def _check(self, leaves):
        for x in leaves:
            if isinstance(x, torch.Tensor):
                assert x.untyped_storage().data_ptr() not in self._on_the_way, "not copied yet"

    def send(self, module):
        """Move a module to the GPU, in place."""
        for part in module.modules():
            for tensors in (part._parameters, part._buffers):
                for name, value in tensors.items():
                    tensors[name] = None if value is None else OnGPU(value.detach())
        return module

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name, leaves = dict(kwargs or {}), str(function), tree_leaves([args, kwargs])
        is_from_gpu = is_on_gpu = any(isinstance(x, OnGPU) for x in leaves)
        if kwargs.get("device") is not None:
            is_on_gpu = torch.device(kwargs["device"]).type == "cuda"
            kwargs["device"] = "cpu"
        if is_from_gpu and _is_reading(name, args):
            self.waits.append(name)
        if not is_from_gpu:
            self._check(leaves)
        if name == _COPYING[0]:
            is_on_the_way = kwargs.pop("non_blocking", False)
        elif name == _COPYING[1]:
            is_on_the_way = kwargs.get("non_blocking", len(args) > 2 and args[2])
            is_on_gpu, is_from_gpu = (isinstance(x, OnGPU) for x in args[:2])
        result = function(*tree_map(_values, args), **tree_map(_values, kwargs))
        if name in _COPYING and is_from_gpu != is_on_gpu:
            source = args[0 if name == _COPYING[0] else 1]
            is_pinned = is_from_gpu or any(source is x for x in self._pinned)
            if not (is_on_the_way and is_pinned):
                self.waits.append(name)
            elif is_from_gpu:
                self._on_the_way.append(result.untyped_storage().data_ptr())
        if not is_on_gpu:
            return result
        if any(result is _values(x) for x in leaves):  # of an operator in place
            return args[0]
        return tree_map(lambda x: OnGPU(x) if isinstance(x, torch.Tensor) else x, result)
