"""The best checkpoint of a run, and the end of a run that gets no better."""

import json
import logging
import math
import os
from typing import Dict, Tuple

from detectron2.config import CfgNode
from detectron2.engine import hooks
from detectron2.utils import comm
from torch import nn

from ..config.check_best_metric import best_mode, uses_best_metric
from ..evaluation.metrics import split_metric
from ..files import whole_file
from ..solver.ema import AveragedWeights
from .checkpoints import WeightsCheckpointer
from .validation import is_evaluated_now

logger = logging.getLogger(__name__)


class MetricHistory:
    """The values of one metric over a run, in a JSON file that outlives the process.

    Not in the checkpoints: those of an evaluated iteration are written before its evaluation.

    Args:
        path (str): the file.
        metric (str): as in ``metrics.json``.
        mode (str): ``"max"`` or ``"min"``: which values are better.
    """

    def __init__(self, path: str, metric: str, mode: str = "max"):
        self.path = path
        self.metric = metric
        self.mode = mode
        self._values: Dict[int, float] = {}

    @property
    def best(self) -> Tuple[int, float] | None:
        """The number of iterations done when the best value was first reached, and the value."""
        finite = [(v, done) for done, v in self._values.items() if math.isfinite(v)]
        if not finite:
            return None
        sign = -1 if self.mode == "max" else 1
        value, done = min(finite, key=lambda pair: (sign * pair[0], pair[1]))
        return done, value

    @property
    def num_since_best(self) -> int:
        """How many evaluations there were after the best one; all of them if there is none."""
        best = self.best
        return sum(done > best[0] for done in self._values) if best else len(self._values)

    def knows(self, iterations_done: int) -> bool:
        """Whether there is a value of the evaluation after so many iterations."""
        return iterations_done in self._values

    def load(self, iterations_done: int) -> None:
        """Read what an earlier process wrote, up to the iteration that is resumed from.

        Args:
            iterations_done (int): 0 for a new run, which takes nothing over.
        """
        self._values = {}
        try:
            with open(self.path) as f:
                content = json.load(f)
            if (content["metric"], content["mode"]) == (self.metric, self.mode):
                evaluations = ((e["iterations"], e["value"]) for e in content["evaluations"])
                values = {int(d): math.nan if v is None else float(v) for d, v in evaluations}
                self._values = {d: v for d, v in sorted(values.items()) if d <= iterations_done}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as e:
            logger.warning(f"{self.path} cannot be read ({e}): the best value so far is not known")

    def add(self, iterations_done: int, value: float) -> None:
        """Add a value, and write the file.

        Args:
            iterations_done (int): how many iterations there had been at the evaluation.
            value (float): NaN is kept and is never the best.
        """
        self._values[iterations_done] = value
        best = self.best
        content = {
            "metric": self.metric,
            "mode": self.mode,
            "best": best and {"iterations": best[0], "value": best[1]},
            "evaluations": [
                {"iterations": d, "value": v if math.isfinite(v) else None}
                for d, v in self._values.items()
            ],
        }
        with whole_file(self.path) as f:
            f.write((json.dumps(content, indent=1) + "\n").encode())


class BestCheckpointer(hooks.BestCheckpointer):
    """Detectron2's hook, with its best value kept when a run is resumed.

    ``model_best.pth`` holds the weights that the metric is of, and the classes, no optimizer, and
    is not what a run is resumed from. It belongs to the main process alone.
    """

    def __init__(
        self,
        eval_period: int,
        model: nn.Module,
        output_dir: str,
        history: MetricHistory,
        **checkpointables,
    ):
        """
        Args:
            eval_period (int): as of ``EvalHook``.
            model (nn.Module): to save.
            output_dir (str): of ``model_best.pth``.
            history (MetricHistory): of the metric; read and added to.
            checkpointables: to save beside the weights.
        """
        checkpointer = WeightsCheckpointer(model, output_dir, **checkpointables)
        super().__init__(eval_period, checkpointer, history.metric, history.mode)
        self.history = history

    def before_train(self):
        self.history.load(self.trainer.start_iter)
        if self.history.best:
            done, self.best_metric = self.history.best
            self.best_iter = done - 1

    def _best_checking(self):
        value, iteration = self.trainer.storage.latest().get(self._val_metric, (None, None))
        if iteration != self.trainer.storage.iter:  # not of this evaluation
            # Evaluations and the learning rate are what Detectron2 keeps without smoothing.
            hints = self.trainer.storage.smoothing_hints()
            names = [n for n, is_smoothed in hints.items() if not is_smoothed and n != "lr"]
            logger.warning(
                f"SOLVER.BEST_METRIC: the evaluation gave no {self._val_metric}, but "
                f"{', '.join(sorted(names)) or 'nothing'}"
            )
            return
        super()._best_checking()
        self.history.add(min(self.trainer.iter + 1, self.trainer.max_iter), value)


class StopTraining(BaseException):
    """Ends the training loop as if it were at its end.

    No ``Exception``, as Detectron2 would log one as an error.
    """


class EarlyStopping(hooks.HookBase):
    """Ends the training of all processes when the best value is too many evaluations ago.

    The last checkpoint is written then as at the end of any run.
    """

    def __init__(self, eval_period: int, patience: int, history: MetricHistory):
        """
        Args:
            eval_period (int): as of ``EvalHook``.
            patience (int): stop when so many evaluations in a row were no better than the best
                one before them; 1 or more.
            history (MetricHistory): filled by a :class:`BestCheckpointer` before this hook, in
                the main process.
        """
        self._period = eval_period
        self._patience = patience
        self._history = history

    def before_train(self):
        if self._is_over():
            logger.info(
                f"The run had stopped early, after {self.trainer.start_iter} iterations. To go "
                f"on, raise SOLVER.EARLY_STOP_PATIENCE, which is {self._patience}."
            )
            self._stop()

    def after_step(self):
        if not (is_evaluated_now(self.trainer, self._period) and self._is_over()):
            return
        if comm.is_main_process():
            done, value = self._history.best or (0, math.nan)
            logger.info(
                f"Stopping early: {self._history.metric} has been no better in "
                f"{self._history.num_since_best} evaluations than {value:.4f} after {done} "
                "iterations."
            )
        self.trainer.save_checkpoint("model_final")
        self._stop()

    def _stop(self) -> None:
        self.trainer.stopped_early = True
        raise StopTraining

    def _is_over(self) -> bool:
        # The main process decides for all.
        return comm.all_gather(self._history.num_since_best >= self._patience)[0]


def build_best_hooks(
    cfg: CfgNode, model: nn.Module, average: AveragedWeights | None = None, **checkpointables
) -> list:
    """Build the hooks of the best checkpoint and of early stopping that the config asks for.

    Args:
        cfg (CfgNode): its ``SOLVER.BEST_METRIC``, ``.BEST_MODE``, ``.EARLY_STOP_PATIENCE``.
        model (nn.Module): the trainer's.
        average (AveragedWeights or None): of the model; what is saved where the metric is its.
        checkpointables: to save with the best weights.

    Returns:
        list[HookBase]: to run after ``EvalHook``.
    """
    if not uses_best_metric(cfg):
        return []
    path = os.path.join(cfg.OUTPUT_DIR, "best.json")
    history = MetricHistory(path, cfg.SOLVER.BEST_METRIC, best_mode(cfg))
    period, best_hooks = cfg.TEST.EVAL_PERIOD, []
    if average is not None and split_metric(history.metric, cfg.DATASETS.TEST).averaged:
        model = average.model
    if comm.is_main_process():
        best_hooks.append(
            BestCheckpointer(period, model, cfg.OUTPUT_DIR, history, **checkpointables)
        )
    if cfg.SOLVER.EARLY_STOP_PATIENCE:
        best_hooks.append(EarlyStopping(period, cfg.SOLVER.EARLY_STOP_PATIENCE, history))
    return best_hooks
