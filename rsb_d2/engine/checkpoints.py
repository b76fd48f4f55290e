"""The hooks that write down what a run must not lose: its state, and its evaluations."""

import logging
import os
import traceback
from contextlib import contextmanager
from typing import Any, Dict, Iterator, Sequence, Set

from detectron2.engine.hooks import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventWriter

from ..checkpoint import Checkpointer, remove_old_checkpoints
from ..solver.ema import EMA_KEY, AveragedWeights
from .signals import Interrupted, SignalWatch

logger = logging.getLogger(__name__)


class WeightsCheckpointer(Checkpointer):
    """Saves what is not to be resumed from: ``last_checkpoint`` stays as it is."""

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        pass


class CheckpointWriter(HookBase):
    """Detectron2's ``PeriodicCheckpointer``, which also writes when a signal asks for the end.

    It goes before the evaluation, as there: an evaluation that fails leaves the checkpoint. All
    processes have it, as each has a random state to be saved.
    """

    def __init__(self, period: int, num_kept: int, eval_period: int, signals: SignalWatch):
        """
        Args:
            period (int): in iterations.
            num_kept (int): how many periodic checkpoints to keep; 0 keeps all.
            eval_period (int): of the evaluations, in iterations; 0 for none. Several processes
                write a checkpoint before each, as they cannot agree on one in its middle.
            signals (SignalWatch): of this process, told of those of the others in each step.
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
            comm.synchronize()  # with a process that ends, its launcher ends the others
            raise Interrupted(received)


@contextmanager
def failures_warned(what: str, known: Set[str] | None = None) -> Iterator[None]:
    """Turn an error of the block into a warning: the training goes on.

    Args:
        what (str): is not written then.
        known (set[str] or None): warnings that are not repeated; gets this one.
    """
    try:
        yield
    except Exception as e:
        frame = traceback.extract_tb(e.__traceback__)[-1]
        reason = f"{type(e).__name__}: {' '.join(str(e).split())}"
        place = f"{os.path.basename(frame.filename)}, line {frame.lineno}"
        message = f"Cannot write {what}, the training goes on: {reason} ({place})"
        if known is None or message not in known:
            logger.warning(message)
        if known is not None:
            known.add(message)


class SafeWriter(EventWriter):
    """A writer of metrics whose failure is a warning, once for each reason.

    Args:
        writer (EventWriter): any.
    """

    def __init__(self, writer: EventWriter):
        self.writer = writer
        self._what = f"metrics with {type(writer).__name__}"
        self._known: Set[str] = set()

    def write(self) -> None:
        with failures_warned(self._what, self._known):
            self.writer.write()

    def close(self) -> None:
        with failures_warned(self._what, self._known):
            self.writer.close()


class EvaluationWriter(HookBase):
    """Writes the figures of an evaluation at once; Detectron2 writes every 20 iterations."""

    def __init__(self, eval_period: int, writers: Sequence[EventWriter]):
        """
        Args:
            eval_period (int): as of ``EvalHook``.
            writers (Sequence[EventWriter]): which write nothing twice.
        """
        self._period = eval_period
        self._writers = writers

    def after_step(self):
        if self._period > 0 and (self.trainer.iter + 1) % self._period == 0:
            for writer in self._writers:
                writer.write()


def save_average(
    average: AveragedWeights, save_dir: str, checkpointables: Dict[str, Any], config: Dict[str, Any]
) -> None:
    """Write ``model_final_ema.pth``, which any program takes as ``MODEL.WEIGHTS``.

    Args:
        average (AveragedWeights): to save as the model.
        save_dir (str): of the run.
        checkpointables (dict[str, Any]): to save beside it.
        config (dict[str, Any]): more to save beside it.
    """
    checkpointer = WeightsCheckpointer(average.model, save_dir, **checkpointables)
    checkpointer.save(f"model_final_{EMA_KEY}", **config)
