"""What a run writes: checkpoints that it can be resumed from, and metrics."""

import logging
import os
import traceback
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Sequence, Set

from detectron2.engine.hooks import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from torch import distributed as dist
from torch import nn

from ..checkpoint import Checkpointer, remove_old_checkpoints
from ..data.random_state import random_state, set_random_state
from ..solver.ema import EMA_KEY, AveragedWeights
from ..utils import unwrap
from .signals import Interrupted, SignalWatch

logger = logging.getLogger(__name__)


class CheckpointWriter(HookBase):
    """Detectron2's ``PeriodicCheckpointer``, which also writes when a signal ends the run.

    As in Detectron2, it comes before the evaluation, so that a failing evaluation leaves a
    checkpoint. All processes have it, because each has a random state to save.
    """

    def __init__(self, period: int, num_kept: int, eval_period: int, signals: SignalWatch):
        """
        Args:
            period (int): in iterations.
            num_kept (int): how many periodic checkpoints to keep; 0 keeps all.
            eval_period (int): period of the evaluations in iterations; 0 for none. Several
                processes also write a checkpoint before each evaluation, because they cannot agree
                on one during it.
            signals (SignalWatch): of this process.
        """
        self._period = period
        self._num_kept = num_kept
        self._eval_period = eval_period if comm.get_world_size() > 1 else 0
        self._signals = signals

    def after_step(self):
        num_done = self.trainer.iter + 1
        received = self._signals.received_by_any
        is_last = num_done >= self.trainer.max_iter
        is_due = any(p > 0 and num_done % p == 0 for p in (self._period, self._eval_period))
        if is_due or (received and not is_last):
            self.trainer.save_checkpoint(f"model_{self.trainer.iter:07d}")
            if self._num_kept and comm.is_main_process():
                folder = self.trainer.checkpointer.save_dir
                remove_old_checkpoints(folder, self.trainer.iter, self._num_kept)
        if is_last:
            self.trainer.save_checkpoint("model_final")
        if received:
            comm.synchronize()  # a launcher ends all processes when the first one ends
            raise Interrupted(received)


class WeightsCheckpointer(Checkpointer):
    """A checkpointer that does not change ``last_checkpoint``, which a run is resumed from."""

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        pass


def save_average(
    average: AveragedWeights, save_dir: str, checkpointables: Dict[str, Any], config: Dict[str, Any]
) -> None:
    """Write ``model_final_ema.pth``, which any program takes as ``MODEL.WEIGHTS``.

    Args:
        average (AveragedWeights): saved as the model.
        save_dir (str): folder of the run.
        checkpointables (dict[str, Any]): saved with it.
        config (dict[str, Any]): plain values that are saved with it.
    """
    checkpointer = WeightsCheckpointer(average.model, save_dir, **checkpointables)
    checkpointer.save(f"model_final_{EMA_KEY}", **config)


def gather_process_states(model: nn.Module) -> List[Dict[str, Any]]:
    """Gather the state that differs between processes; all processes must call it.

    Args:
        model (nn.Module): as it is trained.

    Returns:
        list[dict[str, Any]]: by rank, the random state and the running ``loss_normalizer`` of a
        RetinaNet or FCOS, which Detectron2 keeps outside of the model's state dict.
    """
    state = {"random": random_state()}
    normalizer = getattr(unwrap(model), "loss_normalizer", None)
    if normalizer is not None:
        state["loss_normalizer"] = float(normalizer)
    return comm.all_gather(state)


def set_process_state(model: nn.Module, states: List[Dict[str, Any]]) -> None:
    """Restore the state of the process with this rank.

    Args:
        model (nn.Module): as in :func:`gather_process_states`.
        states (list[dict[str, Any]]): its result. With more processes than there were, the
            additional ones keep their own random state.
    """
    rank = comm.get_rank()
    if rank < len(states):
        set_random_state(states[rank]["random"])
    normalizer = states[min(rank, len(states) - 1)].get("loss_normalizer")
    if normalizer is not None:
        unwrap(model).loss_normalizer = normalizer


def share_buffers(model: nn.Module) -> None:
    """Copy the main process's buffers to all processes; all processes must call it.

    Each process has its own running statistics of batch norm, and a checkpoint has the main
    process's. Evaluations must use these, whether or not the run was resumed.
    """
    if comm.get_world_size() == 1:
        return
    group = comm._get_global_gloo_group()
    for buffer in model.buffers():
        shared = buffer.detach().cpu()
        dist.broadcast(shared, 0, group=group)
        buffer.copy_(shared)


@contextmanager
def failures_warned(output: str, known: Set[str] | None = None) -> Iterator[None]:
    """Turn an error inside the block into a warning, so that the training continues.

    Args:
        output (str): what the block writes, for the message.
        known (set[str] or None): warnings that are not repeated; the new one is added.
    """
    try:
        yield
    except Exception as e:
        frame = traceback.extract_tb(e.__traceback__)[-1]
        reason = f"{type(e).__name__}: {' '.join(str(e).split())}"
        place = f"{os.path.basename(frame.filename)}, line {frame.lineno}"
        message = f"Cannot write {output}, the training goes on: {reason} ({place})"
        if known is None or message not in known:
            logger.warning(message)
        if known is not None:
            known.add(message)


class SafeWriter(EventWriter):
    """A writer of metrics whose failures are warnings, one for each reason.

    Args:
        writer (EventWriter): any writer.
    """

    def __init__(self, writer: EventWriter):
        self.writer = writer
        self._output = f"metrics with {type(writer).__name__}"
        self._known: Set[str] = set()

    def write(self) -> None:
        with failures_warned(self._output, self._known):
            self.writer.write()

    def close(self) -> None:
        with failures_warned(self._output, self._known):
            self.writer.close()


class EvaluationWriter(HookBase):
    """A hook that writes the results of an evaluation at once, not at the next 20th iteration."""

    def __init__(self, eval_period: int, writers: Sequence[EventWriter]):
        """
        Args:
            eval_period (int): as in ``EvalHook``.
            writers (Sequence[EventWriter]): writers that write nothing twice.
        """
        self._period = eval_period
        self._writers = writers

    def after_step(self):
        if self._period > 0 and (self.trainer.iter + 1) % self._period == 0:
            for writer in self._writers:
                writer.write()
