"""CUDA graphs: the kernels of a function, recorded once per input size and then replayed."""

from typing import Any, Callable, Dict, List, Tuple

import torch
from torch import nn
from torch.utils import _pytree as pytree

from .heads import MAX_SIZES, InferenceRPN

# The first calls prepare handles and workspaces, before the kernels are recorded.
_WARM_UP_CALLS = 2

# From a function without arguments to an equivalent one, and the outputs that it writes to.
Record = Callable[[Callable[[], Any]], Tuple[Callable[[], Any], Any]]


class CudaGraphs:
    """Records the kernels of functions, whose intermediate results share their memory.

    They must be replayed one after the other, and the output of one must be used before one that
    was recorded earlier is replayed again.
    """

    def __init__(self, device: torch.device):
        """
        Args:
            device (torch.device): a GPU.
        """
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], Any]) -> Tuple[Callable[[], Any], Any]:
        """
        Args:
            function (callable): of no arguments; it must not wait for the GPU.

        Returns:
            callable, object: replays the kernels, and the outputs that they write to.
        """
        with torch.cuda.device(self._device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP_CALLS):
                    function()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Other threads may continue, such as a loader that pins memory.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                outputs = function()
        return graph.replay, outputs


class Replayed:
    """A function of tensors that is recorded once per input size, and then replayed.

    Its next call overwrites its output.
    """

    def __init__(self, function: Callable[..., Any], record: Record):
        """
        Args:
            function (callable): takes and returns tensors, or lists and dicts of tensors.
            record (callable): such as :class:`CudaGraphs`.
        """
        self.function = function
        self._record = record
        self._recordings: Dict[Any, Tuple[List[torch.Tensor], Callable[[], Any], Any]] = {}

    # Outside of torch's modes: tensors recorded in one must not be written to in the other.
    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(self, *inputs: Any) -> Any:
        leaves, structure = pytree.tree_flatten(inputs)
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        others = [leaf for leaf in leaves if not isinstance(leaf, torch.Tensor)]
        sizes = [(t.shape, t.stride(), t.dtype, t.device) for t in tensors]
        key = (str(structure), str(others), *sizes)
        if key not in self._recordings:
            if len(self._recordings) >= MAX_SIZES:
                return self.function(*inputs)
            self._recordings[key] = self._recorded(leaves, structure)
        mine, replay, outputs = self._recordings[key]
        for own, given in zip(mine, tensors):
            own.copy_(given)
        replay()
        return outputs

    def _recorded(
        self, leaves: List[Any], structure: Any
    ) -> Tuple[List[torch.Tensor], Callable[[], Any], Any]:
        mine = [leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        arguments = pytree.tree_unflatten(mine, structure)
        replay, outputs = self._record(lambda: self.function(*arguments))
        return [m for m in mine if isinstance(m, torch.Tensor)], replay, outputs


def replay_dense_parts(model: nn.Module, record: Record) -> None:
    """Replay backbone, FPN, dense heads and the RPN's candidates.

    A copy of the model does not replay them, as it has its own weights.

    Args:
        model (nn.Module): of :func:`rsb_d2.optimize_for_inference`; changed in place.
        record (callable): such as :class:`CudaGraphs`.
    """
    rpn = getattr(model, "proposal_generator", None)
    dense = [model.backbone, getattr(model, "head", None), getattr(model, "sem_seg_head", None)]
    if isinstance(rpn, InferenceRPN):
        rpn.replayed = Replayed(rpn.candidates, record)
    else:
        dense.append(getattr(rpn, "rpn_head", None))
    for module in dense:
        if module is not None:
            # As nn.Module.compile does; copies drop it.
            module._compiled_call_impl = Replayed(module._call_impl, record)
