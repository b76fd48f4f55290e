"""What the processes tell one another in a step, where Detectron2 gathers its metrics anyway."""

import math
from typing import Any, Dict, List, NamedTuple, Sequence

import numpy as np
import torch
from detectron2.engine import DefaultTrainer
from detectron2.engine.train_loop import TrainerBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage

from ..data.loader import TrainLoader
from ..solver.accumulation import AccumulatingTrainer, Losses
from .signals import SignalWatch


class LossNotFinite(FloatingPointError):
    """The loss of a process is no finite number; all processes raise the same.

    Args:
        message (str): a line.
        files (list[str]): the images of the batch of that process.
    """

    def __init__(self, message: str, files: List[str]):
        super().__init__(message)
        self.files = files


class _Told(NamedTuple):
    """What a process tells the others."""

    losses: Dict[str, float]
    data_time: float  # seconds
    signal: int | None
    bad_images: Dict[str, str]


class StepExchange:
    """Reads the losses once, tells all processes of all, and writes what Detectron2 writes.

    Between the backward pass and the step Detectron2 reads each loss from the device, gathers them
    on the main process, and checks there whether the mean is finite. Here they are read in one
    transfer, and what is gathered, on all processes, has two things beside: the signal that asks
    for the end, and the bad images of the batch. So every process knows before its step whether it
    is to be taken, and a step has no other gather. The metrics are written in each step.

    Args:
        loader (iterable): of the training; bad images are those of a :class:`TrainLoader`.
        signals (SignalWatch): of this process.
    """

    def __init__(self, loader: Any, signals: SignalWatch):
        self._loader = loader
        self._signals = signals
        self._bad_images = loader.bad_images if isinstance(loader, TrainLoader) else None
        if self._bad_images is not None:
            self._bad_images.counted_by_loader = False

    def __call__(self, losses: Losses, data_time: float) -> None:
        """Exchange what is of this step; all processes must call it.

        Args:
            losses (dict[str, Tensor]): of this process, a number each.
            data_time (float): seconds that this process has waited for its batch.

        Raises:
            LossNotFinite: if a loss of any process is NaN or infinite.
            UserError: if too many images are bad.
        """
        bad_images = self._bad_images.take() if self._bad_images is not None else {}
        told = comm.all_gather(_Told(_read(losses), data_time, self._signals.received, bad_images))
        self._signals.tell([one.signal for one in told])
        self._check_finite(told)
        if self._bad_images is not None:
            self._bad_images.count([one.bad_images for one in told])
        _write(told)

    def _check_finite(self, told: Sequence[_Told]) -> None:
        bad = [i for i, one in enumerate(told) if not all(map(math.isfinite, one.losses.values()))]
        if not bad:
            return
        files = comm.all_gather(list(getattr(self._loader, "last_files", ())))
        text = ", ".join(f"{name} {value:.4g}" for name, value in told[bad[0]].losses.items())
        where = f" in process {bad[0]}" if len(told) > 1 else ""
        raise LossNotFinite(f"the loss is not finite{where}: {text}", files[bad[0]])


def use_exchange(trainer: DefaultTrainer, signals: SignalWatch) -> None:
    """Let the processes of a trainer tell one another of each step once.

    Args:
        trainer (DefaultTrainer): constructed, and in mixed precision if it is to be; its inner
            trainer may be replaced.
        signals (SignalWatch): of this process.
    """
    if not isinstance(trainer._trainer, AccumulatingTrainer):
        trainer._trainer = AccumulatingTrainer(trainer._trainer)
    trainer._trainer.write_losses = StepExchange(trainer.data_loader, signals)


def _read(losses: Losses) -> Dict[str, float]:
    """The numbers, waiting for the device once."""
    tensors = [loss.detach().reshape(()) for loss in losses.values()]
    values = torch.stack([t.to(tensors[0].device) for t in tensors]).tolist() if tensors else []
    return dict(zip(losses, values))


def _write(told: Sequence[_Told]) -> None:
    """What ``SimpleTrainer.write_metrics`` writes, which gathers it before."""
    storage = get_event_storage()
    if hasattr(TrainerBase, "after_backward"):  # Detectron2's main
        storage.put_scalar("rank_data_time", told[comm.get_rank()].data_time)
    if not comm.is_main_process():
        return
    storage.put_scalar("data_time", np.max([one.data_time for one in told]))
    losses = {name: np.mean([one.losses[name] for one in told]) for name in told[0].losses}
    storage.put_scalar("total_loss", sum(losses.values()))
    if len(losses) > 1:
        storage.put_scalars(**losses)
