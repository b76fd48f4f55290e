"""One iteration of training: forward and backward, exchange between processes, optimizer step.

With gradient accumulation, the parts of a batch use the padding and the divisor of the losses of
the complete batch. Otherwise their gradients together would not be the gradients of the batch.
"""

import math
import time
from contextlib import contextmanager, nullcontext
from typing import Any, ContextManager, Dict, Iterator, List, Mapping, NamedTuple, Sequence, Tuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.engine.train_loop import TrainerBase
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from ..data.loader import TrainLoader
from ..errors import UserError
from ..memory import send_images
from ..utils import unwrap
from .signals import SignalWatch

Losses = Dict[str, torch.Tensor]

_AMP_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def cpu_has_bfloat16() -> bool:
    """Whether the processor has instructions for bfloat16: AMX or AVX512-BF16."""
    # Private, as torch has no public functions for it.
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    checks = (getattr(torch.cpu, name, None) for name in names)
    return any(check is not None and check() for check in checks)


def amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    """Return the data type of mixed precision on ``MODEL.DEVICE``; None if it is off.

    For ``SOLVER.AMP.DTYPE`` ``"auto"`` and ``"native"``: bfloat16 if the GPU computes in it,
    otherwise float16.
    """
    name = cfg.SOLVER.AMP.DTYPE
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    if name not in ("auto", "native"):
        return _AMP_DTYPES[name]
    has_bfloat16 = not cfg.MODEL.DEVICE.startswith("cuda") or torch.cuda.is_bf16_supported(
        including_emulation=False
    )
    return torch.bfloat16 if has_bfloat16 else torch.float16


class LossNotFinite(FloatingPointError):
    """The loss of one process is NaN or infinite; all processes raise the same error.

    ``files`` are the image files of that process's batch.
    """

    def __init__(self, message: str, files: List[str]):
        super().__init__(message)
        self.files = files


class _StepReport(NamedTuple):
    """The values that one process sends to the others in a step."""

    losses: Dict[str, float]
    data_time: float  # seconds
    signal: int | None
    bad_images: Dict[str, str]


class StepTrainer(SimpleTrainer):
    """Detectron2's ``SimpleTrainer`` with mixed precision, gradient accumulation and one exchange.

    **Mixed precision** computes in bfloat16 or float16, on a GPU or a CPU. bfloat16 has the range
    of float32, so only float16 scales its gradients; the scaler's state is in the checkpoint.

    **Accumulation** computes the gradients of a batch in parts. The loader returns the complete
    batch, and an iteration is still one step of the optimizer. The gradients equal those of the
    complete batch up to rounding, except where a model uses statistics of its batch (batch norm
    that is not fixed) or samples (the heads of an R-CNN average over the proposals of a part).
    Several processes synchronize their gradients only in the last part. The logged losses are means
    over the parts.

    **Exchange**: between backward and step, Detectron2 copies each loss from the device, gathers
    the losses on the main process, and only there checks that they are finite. This class copies
    all of them at once and gathers them on all processes, together with the received signal and the
    bad images of the batch. So every process knows before the step whether to take it, without a
    second collective call. The metrics are written in every iteration.

    Args:
        model (nn.Module): in training mode; may be wrapped for data parallelism.
        data_loader (iterable): of batches; a :class:`TrainLoader` also reports bad images.
        optimizer (Optimizer): of the model's parameters.
        signals (SignalWatch): of this process.
        num_parts (int): a divisor of the number of images in a batch of this process.
        amp_dtype (torch.dtype or None): as returned by :func:`amp_dtype`.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        data_loader: Any,
        optimizer: torch.optim.Optimizer,
        signals: SignalWatch,
        num_parts: int = 1,
        amp_dtype: torch.dtype | None = None,
    ):
        super().__init__(model, data_loader, optimizer)
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.num_parts = num_parts
        self.amp_dtype = amp_dtype
        # Disabled, it leaves losses and gradients as they are.
        is_scaled = amp_dtype is torch.float16
        self.grad_scaler = torch.amp.GradScaler(self.device.type, enabled=is_scaled)
        self._padding = PaddingToBatch(unwrap(model)) if num_parts > 1 else None
        self._signals = signals
        self._bad_images = data_loader.bad_images if isinstance(data_loader, TrainLoader) else None
        if self._bad_images is not None:
            self._bad_images.counted_by_loader = False

    def run_step(self) -> None:
        """Train on the next batch.

        Raises:
            LossNotFinite: if a loss of any process is NaN or infinite; no step is taken.
            UserError: if too many images are bad.
        """
        assert self.model.training, "the model was changed to eval mode!"
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        batch = send_images(batch, self.device)

        # Before the forward pass, so that the old gradients take no memory during it.
        self.optimizer.zero_grad()
        if self.num_parts == 1:
            losses = self._forward(batch)
            self.grad_scaler.scale(sum(losses.values())).backward()
        else:
            losses = self._accumulate(batch)
        if hasattr(self, "after_backward"):  # Detectron2's main branch
            self.after_backward()
        self._exchange(losses, data_time)
        # Explicitly, before the optimizer clips: a fused optimizer would otherwise receive, and
        # clip, the scaled gradients.
        self.grad_scaler.unscale_(self.optimizer)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _forward(self, batch: List[dict]) -> Losses:
        """Return the losses by name; a single loss as ``"total_loss"``."""
        is_mixed = self.amp_dtype is not None
        with torch.autocast(self.device.type, self.amp_dtype) if is_mixed else nullcontext():
            losses = self.model(batch)
        return {"total_loss": losses} if isinstance(losses, torch.Tensor) else losses

    def _accumulate(self, batch: List[dict]) -> Losses:
        """Run forward and backward part by part; return the losses of the complete batch."""
        size = len(batch) // self.num_parts
        parts = [batch[i * size : (i + 1) * size] for i in range(self.num_parts)]
        weights = part_weights(unwrap(self.model), self.num_parts)
        total: Losses = {}
        with self._padding.to_size_of(batch):
            for i, part in enumerate(parts):
                with self._synchronized(is_last=i == self.num_parts - 1):
                    losses = self._forward(part)
                    weight, weight_before = weights.after_forward(len(part))
                    if weight_before != 1.0:
                        self._scale_gradients(weight_before)
                    self.grad_scaler.scale(weight * sum(losses.values())).backward()
                for name, loss in losses.items():
                    before = weight_before * total[name] if name in total else 0.0
                    total[name] = before + weight * loss.detach()
        return total

    def _synchronized(self, is_last: bool) -> ContextManager:
        if is_last or not isinstance(self.model, DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()

    def _scale_gradients(self, factor: float) -> None:
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

    def _exchange(self, losses: Losses, data_time: float) -> None:
        """Gather this step's losses, signals and bad images; check and write the losses."""
        bad_images = self._bad_images.take() if self._bad_images is not None else {}
        reports = comm.all_gather(
            _StepReport(_to_floats(losses), data_time, self._signals.received, bad_images)
        )
        self._signals.set_received_by_all([report.signal for report in reports])
        self._check_finite(reports)
        if self._bad_images is not None:
            self._bad_images.count([report.bad_images for report in reports])
        _write(reports)

    def _check_finite(self, reports: Sequence[_StepReport]) -> None:
        bad = [i for i, r in enumerate(reports) if not all(map(math.isfinite, r.losses.values()))]
        if not bad:
            return
        files = comm.all_gather(list(getattr(self.data_loader, "last_files", ())))
        text = ", ".join(f"{name} {value:.4g}" for name, value in reports[bad[0]].losses.items())
        where = f" in process {bad[0]}" if len(reports) > 1 else ""
        raise LossNotFinite(f"the loss is not finite{where}: {text}", files[bad[0]])

    def state_dict(self) -> Dict[str, Any]:
        state = super().state_dict()
        if self.amp_dtype is not None:
            state["grad_scaler"] = self.grad_scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state, also of a run in another precision; a missing scaler starts from new."""
        super().load_state_dict(state_dict)
        if state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def _to_floats(losses: Losses) -> Dict[str, float]:
    """Copy the losses from the device, waiting for it once."""
    tensors = [loss.detach().reshape(()) for loss in losses.values()]
    values = torch.stack([t.to(tensors[0].device) for t in tensors]).tolist() if tensors else []
    return dict(zip(losses, values))


def _write(reports: Sequence[_StepReport]) -> None:
    """Write the metrics of ``SimpleTrainer.write_metrics``, which would gather them again."""
    storage = get_event_storage()
    if hasattr(TrainerBase, "after_backward"):  # Detectron2's main branch
        storage.put_scalar("rank_data_time", reports[comm.get_rank()].data_time)
    if not comm.is_main_process():
        return
    storage.put_scalar("data_time", np.max([report.data_time for report in reports]))
    losses = {name: np.mean([r.losses[name] for r in reports]) for name in reports[0].losses}
    storage.put_scalar("total_loss", sum(losses.values()))
    if len(losses) > 1:
        storage.put_scalars(**losses)


# ---- gradient accumulation ----


def check_accumulation(cfg: CfgNode, world_size: int) -> None:
    """Check that ``SOLVER.ACCUMULATE_STEPS`` divides each process's share of the batch."""
    solver = cfg.SOLVER
    steps, reference = solver.ACCUMULATE_STEPS, solver.REFERENCE_WORLD_SIZE
    # Detectron2 scales the batch with the number of processes if REFERENCE_WORLD_SIZE is set.
    batch = solver.IMS_PER_BATCH * world_size // reference if reference else solver.IMS_PER_BATCH
    if steps > 1 and batch % (steps * world_size):
        many = f", of {world_size} processes" if world_size > 1 else ""
        raise UserError(
            f"SOLVER.ACCUMULATE_STEPS is {steps}{many}: SOLVER.IMS_PER_BATCH, the complete batch, "
            f"must be a multiple of {steps * world_size}, and is {batch}"
        )


class PaddingToBatch:
    """A hook that pads the images of a part to the padded size of the complete batch.

    Detectron2 pads to the largest image of its input, and layers with a bias or a norm compute
    non-zero values from the padding. A model without a backbone, such as a classifier, has images
    of one size. A model that segments stuff pads its ground truth to the size of the part, so its
    images are not padded further.

    Args:
        model (nn.Module): not wrapped; its backbone gets a forward pre-hook that does nothing
            outside of :meth:`to_size_of`.
    """

    def __init__(self, model: nn.Module):
        self._size: Tuple[int, int] | None = None
        self._divisor = 0
        self._is_used = hasattr(model, "backbone") and not hasattr(model, "sem_seg_head")
        if self._is_used:
            self._divisor = getattr(model.backbone, "size_divisibility", 0)
            model.backbone.register_forward_pre_hook(self._pad)

    @contextmanager
    def to_size_of(self, batch: List[dict]) -> Iterator[None]:
        """Pad to the largest height and width of a batch until the block ends."""
        if self._is_used:
            divisor = max(self._divisor, 1)
            sizes = zip(*(item["image"].shape[-2:] for item in batch))
            self._size = tuple(-(-max(size) // divisor) * divisor for size in sizes)
        try:
            yield
        finally:
            self._size = None

    @torch.compiler.disable
    def _pad(self, module: nn.Module, inputs: Tuple[torch.Tensor]) -> Tuple[torch.Tensor] | None:
        images = inputs[0]
        if self._size is None or tuple(images.shape[-2:]) == self._size:
            return None
        bottom, right = (max(a - b, 0) for a, b in zip(self._size, images.shape[-2:]))
        return (F.pad(images, (0, right, 0, bottom)), *inputs[1:])


class EqualWeights:
    """Weights of parts whose losses are means over images: one share each.

    Args:
        num_parts (int): of a batch.
    """

    def __init__(self, num_parts: int):
        self._num_parts = num_parts

    def after_forward(self, num_images: int) -> Tuple[float, float]:
        """Return the weights of a part; call it once for each part, in order.

        Args:
            num_images (int): images in the part.

        Returns:
            float, float: the factor for the losses of this part, and the factor for the gradients
            of all earlier parts.
        """
        return 1 / self._num_parts, 1.0


class DenseWeights:
    """Weights for RetinaNet and FCOS, whose losses are divided by a number of positive anchors.

    Stock models divide by a running average that each forward pass updates; this project's
    ``OpenMMLabRetinaNet`` divides by the number itself. For the complete batch, both are known only
    after the last part's forward pass. Until then, all gradients are divided by the first part's
    divisor times the number of parts; the last part corrects them.

    Args:
        model (DenseDetector): has its running average, if any, in ``loss_normalizer``.
        num_parts (int): of a batch.
    """

    # Detectron2's default in DenseDetector._ema_update.
    _MOMENTUM = 0.9

    def __init__(self, model: DenseDetector, num_parts: int):
        self._model = model
        self._num_parts = num_parts
        self._num_done = 0
        self._num_positive = 0
        self._before: float | None = None  # the running average
        self._provisional = 1.0

    def after_forward(self, num_images: int) -> Tuple[float, float]:
        """As :meth:`EqualWeights.after_forward`; updates the running average once a batch."""
        mean_of_part, _ = get_event_storage().latest()["num_pos_anchors"]
        num_positive = round(mean_of_part * num_images)
        count = max(num_positive, 1)
        divisor = getattr(self._model, "loss_normalizer", count)
        if not self._num_done:
            self._before = (divisor - (1 - self._MOMENTUM) * count) / self._MOMENTUM
            self._provisional = divisor * self._num_parts
        self._num_done += 1
        self._num_positive += num_positive
        if self._num_done < self._num_parts:
            self._restore()
            return divisor / self._provisional, 1.0
        self._restore()
        of_batch = self._model._ema_update(
            "loss_normalizer", max(self._num_positive, 1), self._before, self._MOMENTUM
        )
        return divisor / of_batch, self._provisional / of_batch

    def _restore(self) -> None:
        if hasattr(self._model, "loss_normalizer"):
            self._model.loss_normalizer = self._before


def part_weights(model: nn.Module, num_parts: int) -> EqualWeights | DenseWeights:
    """Return the weights of the parts of one batch, before the first part's forward pass."""
    if isinstance(model, DenseDetector):
        return DenseWeights(model, num_parts)
    return EqualWeights(num_parts)
