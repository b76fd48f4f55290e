"""A detector on a GPU: the graph of fixed shapes for each padded size, with one wait per batch."""

import copy
import logging
import threading
from contextlib import nullcontext
from functools import partial
from typing import Any, Callable, Dict, Hashable, List, NamedTuple, Set, Tuple

import torch
from detectron2.layers import paste_masks_in_image
from detectron2.structures import Boxes, Instances
from torch import nn

from ...modeling.heads import clip
from .static import StaticDetector, static_detector

logger = logging.getLogger(__name__)

# Single images with a shorter side of 800 pixels and a longer one of up to 1,333 have 35, padded.
_MAX_SIZES = 64
# Threads take turns, as the tensors of a recording are the same in each replay.
_LOCK = threading.Lock()
# The first calls prepare handles and workspaces, before the kernels are recorded.
_WARM_UP_CALLS = 2

Outputs = Dict[str, torch.Tensor]
# Of a batch, when they are needed.
Results = Callable[[], List[Dict[str, Any]]]
# From a function without arguments to one that writes into the same outputs, and these.
Record = Callable[[Callable[[], Outputs]], Tuple[Callable[[], Any], Outputs]]


def cuda_graphs(device: torch.device) -> Record:
    """A function that records the kernels of others on a GPU, which must not wait for it.

    Intermediate results of all recordings share their memory: they must be replayed one after the
    other, and the output of one must be used before one that was recorded earlier is replayed.
    """
    pool = torch.cuda.graph_pool_handle()

    def record(function: Callable[[], Outputs]) -> Tuple[Callable[[], Any], Outputs]:
        with torch.cuda.device(device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP_CALLS):
                    function()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Other threads may continue, such as a loader that pins memory.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                outputs = function()
        return graph.replay, outputs

    return record


class _Graph(NamedTuple):
    inputs: Tuple[torch.Tensor, torch.Tensor]
    run: Callable[[], Any]
    outputs: Outputs


class StaticInference:
    """Replaces ``forward`` of a detector, which computes the same with :func:`static_detector`.

    A batch is padded as Detectron2 pads it. Images of which the detections may not be exact are
    detected again by the model's own method.
    """

    def __init__(self, model: nn.Module, record: Record | None = None, to_cpu: bool = False):
        """
        Args:
            model (nn.Module): one that :func:`static_detector` takes; in evaluation mode.
            record (callable or None): such as :func:`cuda_graphs`, which is called when a batch
                size and padded size comes for the second time, of 64 at most. If it fails, there is
                a warning, and nothing more is recorded. A copy has none, as it has its own weights.
            to_cpu (bool): whether results are on the CPU, where masks are then pasted.

        Raises:
            UserError: for a model without a form with fixed shapes.
        """
        self._detector = static_detector(model, None)
        self._model = model
        self._record = record
        self._to_cpu = to_cpu
        self._seen: Set[Hashable] = set()
        self._graphs: Dict[Hashable, _Graph] = {}

    def __getstate__(self) -> Dict[str, Any]:
        return {**vars(self), "_record": None, "_seen": set(), "_graphs": {}}

    def __call__(self, batched_inputs: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
        """As the method of ``GeneralizedRCNN`` or ``RetinaNet`` in evaluation mode."""
        return self.start(batched_inputs)()

    # Outside of torch's modes: tensors recorded in one must not be written to in the other.
    @torch.inference_mode(False)
    @torch.no_grad()
    def start(self, batched_inputs: List[Dict[str, Any]]) -> Results:
        """Start a call; the returned function returns its results.

        With ``to_cpu`` on a GPU, that function waits for them, also if other calls have been
        started since. Otherwise they are there already.
        """
        if not batched_inputs:
            return list
        images = [record["image"] for record in batched_inputs]
        sizes = [tuple(image.shape[-2:]) for image in images]
        with _LOCK if self._record or self._graphs else nullcontext():
            outputs = self._run(images, sizes)
            if self._to_cpu and outputs["scores"].is_cuda:
                device, copied = outputs["scores"].device, torch.cuda.Event()
                outputs = {name: x.to("cpu", non_blocking=True) for name, x in outputs.items()}
                copied.record(torch.cuda.current_stream(device))
                return partial(self._finish, batched_inputs, sizes, outputs, copied)
            results = self._finish(batched_inputs, sizes, outputs)
        return lambda: results

    @torch.inference_mode(False)
    @torch.no_grad()
    def _finish(
        self,
        batched_inputs: List[Dict[str, Any]],
        sizes: List[Tuple[int, int]],
        outputs: Outputs,
        copied: torch.cuda.Event | None = None,
    ) -> List[Dict[str, Any]]:
        # The only wait: for the copies in pinned memory, or for the numbers alone.
        if copied is not None:
            copied.synchronize()
        state = torch.stack([outputs["num_detections"], outputs["is_exact"].long()]).tolist()
        results = []
        for i, (record, size, number) in enumerate(zip(batched_inputs, sizes, state[0])):
            original = record.get("height", size[0]), record.get("width", size[1])
            found = {
                name: values[i, :number] for name, values in outputs.items() if values.dim() > 1
            }
            results.append({"instances": _postprocess(found, size, original)})
        if not all(state[1]):
            own = type(self._model).forward(self._model, batched_inputs)
            if self._to_cpu:
                own = [{"instances": result["instances"].to("cpu")} for result in own]
            results = [r if is_exact else o for r, o, is_exact in zip(results, own, state[1])]
        return results

    def _run(self, images: List[torch.Tensor], sizes: List[Tuple[int, int]]) -> Outputs:
        divisor = max(self._model.backbone.size_divisibility, 1)
        detector = copy.copy(self._detector)  # which makes nothing from these two
        detector.image_size = tuple(-(-max(sides) // divisor) * divisor for sides in zip(*sizes))
        detector.batch_size = len(images)
        images = [x.to(self._model.pixel_mean.device, non_blocking=True) for x in images]
        inputs = detector.stack(images)
        key = len(images), detector.image_size, images[0].dtype
        if key not in self._graphs:
            if key not in self._seen or not self._recorded(key, detector, inputs):
                self._seen.add(key)
                return detector(*inputs)
        graph = self._graphs[key]
        for mine, given in zip(graph.inputs, inputs):
            mine.copy_(given)
        graph.run()
        return graph.outputs

    def _recorded(
        self, key: Hashable, detector: StaticDetector, inputs: Tuple[torch.Tensor, torch.Tensor]
    ) -> bool:
        """Record a size, if that can be done."""
        if self._record is None or len(self._graphs) >= _MAX_SIZES:
            return False
        inputs = tuple(x.clone() for x in inputs)
        try:
            self._graphs[key] = _Graph(inputs, *self._record(lambda: detector(*inputs)))
        except RuntimeError as e:
            reason = " ".join(str(e).split())[:200]
            logger.warning(f"Detections are computed without CUDA graphs: {reason}")
            self._record = None
        return key in self._graphs


def _postprocess(found: Outputs, size: Tuple[int, int], original: Tuple[int, int]) -> Instances:
    """``detector_postprocess``, without waiting for the GPU."""
    boxes = found["boxes"].clone()
    boxes[:, 0::2] *= original[1] / size[1]
    boxes[:, 1::2] *= original[0] / size[0]
    instances = Instances(
        original,
        pred_boxes=Boxes(clip(boxes, original)),
        scores=found["scores"].clone(),
        pred_classes=found["classes"].clone(),
    )
    if "masks" in found:
        masks = paste_masks_in_image(found["masks"], instances.pred_boxes, original, 0.5)
        instances.pred_masks = masks
    return instances
