"""Training with parts of a model recorded as CUDA graphs, ``MODEL.CUDA_GRAPHS``."""

import inspect
from typing import Any, Callable, Dict, Hashable, List, Set

import torch
from detectron2.config import CfgNode
from torch import nn

from ..data.random_state import random_state_kept
from ..errors import UserError

# Each holds its outputs and all gradients of its part, and shares the memory of its other tensors.
_MAX_SIZES = 8


class RecordedPart:
    """Replaces ``forward`` of a part of a model while it is trained on one GPU.

    When images of a size come for the second time, the kernels of the forward and the backward pass
    are recorded by :func:`torch.cuda.make_graphed_callables`, and from then on replayed, which
    starts each pass at once. Nothing is padded, and other sizes, evaluation and whatever needs no
    gradients are computed as before. Hooks of the part itself run in each call; hooks of modules in
    it only while it is recorded.

    The part must take one tensor or a list of them, return tensors, and wait for the GPU nowhere.
    Each forward pass must be followed by its backward pass before the next one.
    """

    def __init__(self, part: nn.Module):
        """
        Args:
            part (nn.Module): on a GPU, with all that replaces its layers in place; its parameters
                may change in value only.
        """
        self._part, self._forward = part, part.forward
        self._seen: Set[Hashable] = set()
        self._recordings: Dict[Hashable, Callable] = {}
        self._pool = None

    def __getstate__(self) -> Dict[str, Any]:
        """Of a copy, which has its own weights and thus no recordings."""
        return {**vars(self), "_seen": set(), "_recordings": {}, "_pool": None}

    def __call__(self, x: torch.Tensor | List[torch.Tensor]) -> Any:
        """As the method of the part.

        Raises:
            UserError: if the part cannot be recorded.
        """
        if not (self._part.training and torch.is_grad_enabled()):
            return self._forward(x)
        tensors = [x] if isinstance(x, torch.Tensor) else x
        kind = tensors[0].device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        key = (dtype, *((t.shape, t.dtype, t.requires_grad) for t in tensors))
        if key not in self._recordings:
            if key not in self._seen or len(self._recordings) == _MAX_SIZES:
                self._seen.add(key)
                return self._forward(x)
            self._recordings[key] = self._record(tensors, x, dtype)
        # Gradients that are there may be the memory of a recording, which the replay overwrites
        # before autograd adds to it.
        for parameter in self._part.parameters():
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()
        return self._recordings[key](x)

    def _record(
        self, tensors: List[torch.Tensor], x: Any, dtype: torch.dtype | None
    ) -> Callable[[Any], Any]:
        samples = [t.detach().clone().requires_grad_(t.requires_grad) for t in tensors]
        sample = samples[0] if isinstance(x, torch.Tensor) else samples
        buffers = {buffer: buffer.clone() for buffer in self._part.buffers()}
        device = tensors[0].device.type
        with (
            torch.cuda.device_of(tensors[0]),
            random_state_kept(),
            torch.autocast(device, dtype, enabled=dtype is not None, cache_enabled=False),
        ):
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            try:
                recording = torch.cuda.make_graphed_callables(
                    _Call(self._part, self._forward),
                    (sample,),
                    allow_unused_input=True,
                    pool=self._pool,
                    **({"capture_error_mode": "thread_local"} if _records_beside_threads() else {}),
                )
            except RuntimeError as e:
                raise UserError(
                    f"MODEL.CUDA_GRAPHS: {type(self._part).__name__} cannot be recorded "
                    f"({' '.join(str(e).split())[:200]}); write False"
                ) from e
        for buffer, value in buffers.items():  # of batch norm, which the warm-up has changed
            buffer.copy_(value)
        return recording


class _Call(nn.Module):
    """A part without its hooks and its replaced ``forward``."""

    def __init__(self, part: nn.Module, forward: Callable):
        super().__init__()
        self.part, self._call = part, forward

    def forward(self, x: Any) -> Any:
        return self._call(x)


def check_cuda_graphs(cfg: CfgNode, world_size: int) -> None:
    """Check that a training can use ``MODEL.CUDA_GRAPHS``, if it is on."""
    reason = ""
    if not cfg.MODEL.DEVICE.startswith("cuda"):
        reason = f"is for a GPU, and MODEL.DEVICE is {cfg.MODEL.DEVICE}"
    elif world_size > 1:
        reason = f"is for a training on one GPU, and there are {world_size} processes"
    elif cfg.MODEL.COMPILE:
        reason = "records what MODEL.COMPILE compiles; set one of them"
    elif cfg.DATALOADER.NUM_WORKERS and not _records_beside_threads():
        reason = f"needs torch 2.14, or DATALOADER.NUM_WORKERS 0; this is torch {torch.__version__}"
    if cfg.MODEL.CUDA_GRAPHS and reason:
        raise UserError(f"MODEL.CUDA_GRAPHS {reason}; write False")


def _records_beside_threads() -> bool:
    """Whether the loader's thread that pins memory may continue during a recording."""
    parameters = inspect.signature(torch.cuda.make_graphed_callables).parameters
    return "capture_error_mode" in parameters
