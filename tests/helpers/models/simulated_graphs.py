"""CUDA graphs on the CPU: torch's operators are recorded, and run again on the same tensors."""

from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_READING = ("_local_scalar_dense", "nonzero", "masked_select", "equal.", "unique")


class _Capture(TorchDispatchMode):
    def __init__(self, graph):
        super().__init__()
        self._graph = graph

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(part in str(function) for part in _READING):
            raise RuntimeError(f"{function}: operation not permitted when stream is capturing")
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        self._graph.operators.append((function, args, kwargs, result))
        return result


class SimulatedGraphs:
    """Replaces what ``torch.cuda.make_graphed_callables`` calls; the function itself is torch's.

    Attributes:
        graphs (list): of all recordings, in order, each with ``num_replays``.
    """

    def __init__(self, monkeypatch):
        self.graphs = graphs = []
        self._capturing = False

        class Graph:
            def __init__(self):
                self.operators, self.num_replays = [], 0
                graphs.append(self)

            @torch.no_grad()
            def replay(self):
                self.num_replays += 1
                for function, args, kwargs, result in self.operators:
                    returned = [r.alias_info for r in function._schema.returns]
                    if any(alias is not None and not alias.is_write for alias in returned):
                        continue  # a view, of the same memory
                    new = function(*args, **kwargs)
                    for old, value in zip(tree_leaves(result), tree_leaves(new)):
                        if isinstance(old, torch.Tensor) and old is not value:
                            old.copy_(value)

        @contextmanager
        def capture(graph, stream, pool, capture_error_mode, **kwargs):
            # A thread of the loader pins memory meanwhile.
            assert capture_error_mode == "thread_local" and pool == (0, 1)
            self._capturing = True
            try:
                with _Capture(graph):
                    yield
            finally:
                self._capturing = False

        for name, value in {
            "CUDAGraph": Graph,
            "graph": capture,
            "graph_pool_handle": lambda: (0, 1),
            "is_initialized": lambda: self._capturing,
            "is_current_stream_capturing": lambda: self._capturing,
            "synchronize": lambda: None,
            "Stream": lambda: None,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    @property
    def replays(self):
        """list[int]: of each graph that was recorded, in order."""
        return [graph.num_replays for graph in self.graphs]
