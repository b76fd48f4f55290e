"""Detectron2's default trainer with this project's parts, and a run that survives."""

import errno
import logging
import os
import sys
from contextlib import contextmanager
from typing import Any, Dict, Iterable, Iterator, List, Mapping

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, hooks
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter

from ..checkpoint import Checkpointer, files_of_run, remove_leftovers, set_aside
from ..checkpoint.run_folder import CONFIG_KEY
from ..config.check_keypoints import check_keypoints
from ..config.defaults import check_has_keys
from ..config.paths import expand_paths
from ..data.class_names import stored_class_names
from ..data.loader import TrainLoader, epoch_size
from ..data.random_state import random_state_kept
from ..errors import UserError
from ..evaluation import build_evaluator, convert_test_sets
from ..evaluation.metrics import split_metric
from ..evaluation.tta import TTAEvaluation, evaluate_with_tta
from ..extensions import ACCELERATION
from ..modeling.keypoint_head import make_logits_contiguous
from ..solver import build_optimizer
from ..solver.accumulation import use_accumulation
from ..solver.ema import AverageUpdate, build_average, evaluate_with_average
from ..solver.epochs import check_resolved
from .amp import use_amp
from .best import BestCheckpointer, EarlyStopping, StopTraining, build_best_hooks
from .checkpoints import (
    CheckpointWriter,
    EvaluationWriter,
    SafeWriter,
    failures_warned,
    save_average,
)
from .exchange import LossNotFinite, use_exchange
from .resume import gather_process_states, set_process_state, share_buffers
from .signals import Interrupted, SignalWatch
from .speed import prepare_for_training
from .tasks import check_config, get_task
from .validation import ValidationLoss

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """The trainer of ``train_net.py``; stock but for the pieces that Detectron2 lets one replace.

    A run that was killed and is resumed takes the same steps as one that never stopped: the
    checkpoints hold the place in the data and the random state of every process beside what
    Detectron2 saves. SIGTERM and SIGINT end :meth:`train` with a checkpoint and ``SystemExit``.

    Args:
        cfg (CfgNode): with the keys of :func:`rsb_d2.add_rsb_config`.

    Attributes:
        stopped_early (bool): whether ``SOLVER.EARLY_STOP_PATIENCE`` has ended the training.
    """

    stopped_early = False

    def __init__(self, cfg: CfgNode):
        # What a subclass builds by itself may have other values.
        if any(map(self._overrides, ("build_model", "build_optimizer", "build_lr_scheduler"))):
            check_has_keys(cfg, "")
        else:
            check_config(cfg)
        cfg = expand_paths(cfg)
        self.signals = SignalWatch(comm.get_world_size())
        self._process_states: List[Dict[str, Any]] = []
        self._has_failed = False
        self._earlier_files = files_of_run(cfg.OUTPUT_DIR)  # before this run has any
        if not self._overrides("build_train_loader"):
            check_keypoints(cfg)
        if not self._overrides("build_evaluator"):
            convert_test_sets(cfg)
        super().__init__(cfg)
        if isinstance(self.data_loader, TrainLoader):
            check_resolved(cfg, epoch_size(cfg, self.data_loader.num_records))
            signals = self.signals
            self.data_loader.is_ending = lambda: signals.received is not None
        prepare_for_training(self.model, cfg)
        use_amp(self, cfg)
        use_accumulation(self, cfg)
        use_exchange(self, self.signals)

    def _overrides(self, name: str) -> bool:
        """Whether a subclass has a method of its own instead of this class's."""
        classes = type(self).__mro__
        return any(name in vars(cls) for cls in classes[: classes.index(Trainer)])

    def build_hooks(self) -> List[hooks.HookBase]:
        """The stock hooks and this project's, with checkpoints by this project's checkpointer.

        The stock constructor makes its own checkpointer just before it calls this.
        """
        cfg = self.cfg
        self._classes = stored_class_names(cfg)
        self._average = build_average(cfg, self.model)
        self.checkpointer = Checkpointer(
            self.model,
            cfg.OUTPUT_DIR,
            **self.checkpointer.checkpointables,
            **self._classes,
            **({"ema": self._average} if self._average else {}),
        )
        stock = super().build_hooks()
        writers = [hook for hook in stock if isinstance(hook, hooks.PeriodicWriter)]
        for hook in writers:
            hook._writers = [SafeWriter(writer) for writer in hook._writers]
        metric_writers = [
            safe
            for hook in writers
            for safe in hook._writers
            if not isinstance(safe.writer, CommonMetricPrinter)
        ]
        others = (hooks.EvalHook, hooks.PeriodicWriter, hooks.PeriodicCheckpointer)
        period, keep = cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.CHECKPOINT_KEEP
        ours = [
            *(hook for hook in stock if not isinstance(hook, others)),
            *([AverageUpdate(self._average)] if self._average else []),
            CheckpointWriter(period, keep, cfg.TEST.EVAL_PERIOD, self.signals),
            hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate),
            *([TTAEvaluation(self._average)] if cfg.TEST.AUG.ENABLED else []),
        ]
        if cfg.TEST.VAL_LOSS:
            build_loader = get_task(cfg).build_validation_loader
            ours.append(ValidationLoss(cfg, self.model, build_loader, self._average))
        ours += build_best_hooks(cfg, self.model, self._average, **self._classes)
        ours += [*writers, EvaluationWriter(cfg.TEST.EVAL_PERIOD, metric_writers)]
        if comm.is_main_process():
            # Behind the stock writer, which must have written the evaluation that is drawn.
            ours.append(get_task(cfg).build_picture_writer(cfg))
        return ours

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on with the run in ``OUTPUT_DIR``, or load ``MODEL.WEIGHTS`` and start a new one.

        A new one has the folder for itself: the files of an earlier run are moved to
        ``OUTPUT_DIR/earlier``.

        Args:
            resume (bool): as in Detectron2.

        Raises:
            UserError: as :meth:`rsb_d2.Checkpointer.resume_or_load`.
        """
        folder = self.cfg.OUTPUT_DIR
        if comm.is_main_process() and os.path.isdir(folder):
            remove_leftovers(folder)
        comm.synchronize()
        super().resume_or_load(resume)
        if not (resume and self.checkpointer.has_checkpoint()):
            self._set_earlier_run_aside()  # after the loading, which may be of its weights

    def _set_earlier_run_aside(self) -> None:
        if comm.is_main_process():
            set_aside(self.cfg.OUTPUT_DIR, self._earlier_files, has_begun=True)
        self._earlier_files = []
        comm.synchronize()

    def train(self):
        """As the stock method, but that the training may end before ``SOLVER.MAX_ITER``.

        Early stopping ends it as if it had come to its end.

        Raises:
            SystemExit: after SIGTERM or SIGINT, with the status that a shell expects, 143 or 130.
            UserError: if the loss is no finite number, if too many images are bad, or if the disk
                is full. The checkpoints written so far are as they were.
        """
        self.signals.start()
        try:
            if self.start_iter == 0:
                self._set_earlier_run_aside()
            return super().train()
        except StopTraining:
            if len(self.cfg.TEST.EXPECTED_RESULTS) and comm.is_main_process():
                verify_results(self.cfg, self._last_eval_results)
                return self._last_eval_results
        except _Failed as e:
            raise e.error from None
        except Interrupted as e:
            logger.warning(
                f"Stopped by a signal after {min(self.iter + 1, self.max_iter)} iterations; "
                "--resume goes on from there."
            )
            sys.exit(128 + e.number)
        finally:
            self.signals.stop()

    def before_train(self):
        if self._process_states:
            set_process_state(self.model, self._process_states)
        with self._failures_told():
            super().before_train()
            if self._lacks_evaluation():
                logger.info(f"Evaluating after {self.start_iter} iterations: it was interrupted.")
                self.iter = self.storage.iter = self.start_iter - 1
                for hook in self._hooks:
                    if isinstance(hook, _EVALUATION_HOOKS):
                        hook.after_step()

    def before_step(self):
        with self._failures_told():
            super().before_step()

    def run_step(self):
        with self._failures_told():
            try:
                super().run_step()
            except FloatingPointError as e:
                raise UserError(self._explain_divergence(e)) from e

    def after_step(self):
        with self._failures_told():
            super().after_step()

    def after_train(self):
        self.iter = min(self.iter, self.max_iter)  # beyond it where there was nothing left to do
        if self._has_failed:  # neither evaluated nor drawn
            self.storage.iter = self.iter
            for hook in self._hooks:
                if isinstance(hook, hooks.PeriodicWriter):
                    hook.after_train()
        else:
            with self._failures_told():
                super().after_train()

    def save_checkpoint(self, name: str) -> None:
        """Save all that is needed to go on; every process must call it.

        Args:
            name (str): the file's name in ``OUTPUT_DIR``, without ``.pth``.

        Raises:
            UserError: if the file cannot be written.
        """
        share_buffers(self.model)
        if self._average:
            share_buffers(self._average.model)
        self._process_states = gather_process_states(self.model)
        config = {CONFIG_KEY: self.cfg.dump()}
        if self._average and name == "model_final":
            save_average(self._average, self.cfg.OUTPUT_DIR, self._classes, config)
        self.checkpointer.save(name, iteration=self.iter, **config)

    def state_dict(self) -> Dict[str, Any]:
        state = super().state_dict()
        state["processes"] = self._process_states
        if isinstance(self.data_loader, TrainLoader):
            state["data"] = self.data_loader.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._process_states = state.get("processes", [])
        if "data" in state and isinstance(self.data_loader, TrainLoader):
            self.data_loader.load_state_dict(state["data"])
        else:
            logger.warning(
                "The checkpoint does not say where in the data its run was: it starts at the "
                "beginning."
            )

    @contextmanager
    def ended_by_signals(self) -> Iterator[None]:
        """Let signals end what the block does between two steps, such as a long evaluation.

        A checkpoint is written then, in which what the block does is still to be done; several
        processes have written theirs before.
        """
        if comm.get_world_size() > 1:
            with self.signals.obeyed_at_once():
                yield
            return
        try:
            with self.signals.raised_at_once():
                yield
        except Interrupted:
            if self.iter + 1 < self.max_iter:
                self.save_checkpoint(f"model_{self.iter:07d}")
            raise

    def _evaluate(self) -> dict:
        with self.ended_by_signals(), random_state_kept():
            results = self._last_eval_results = self.test(self.cfg, self.model)
            if self._average:
                with self._average.beside(self.model) as averaged:
                    results = evaluate_with_average(self.test, self.cfg, results, averaged)
        return results

    def _lacks_evaluation(self) -> bool:
        """Whether the process before was killed between a checkpoint and its evaluation."""
        period, done = self.cfg.TEST.EVAL_PERIOD, self.start_iter
        if done in (0, self.max_iter) or period <= 0 or done % period:
            return False
        best = [hook for hook in self._hooks if isinstance(hook, BestCheckpointer)]
        # The main process decides for all.
        return comm.all_gather(any(not hook.history.knows(done) for hook in best))[0]

    @contextmanager
    def _failures_told(self) -> Iterator[None]:
        """Let what the user can mend end the training without the stack of frames."""
        try:
            yield
        except UserError as e:
            self._has_failed = True
            raise _Failed(e) from None
        except OSError as e:
            if e.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._has_failed = True
            error = UserError(f"cannot write to {e.filename or self.cfg.OUTPUT_DIR}: {e.strerror}")
            raise _Failed(error) from None

    def _explain_divergence(self, error: FloatingPointError) -> str:
        """One line: the iteration, the losses, the images, and what is left."""
        latest = self.storage.latest()
        metrics = {name: split_metric(name, self.cfg.DATASETS.TEST) for name in latest}
        names = [n for n, m in metrics.items() if m.is_loss and not m.is_validation_loss]
        losses = [f"{name} {latest[name][0]:.4g}" for name in names]
        files = getattr(self.data_loader, "last_files", ())
        images = ", ".join(error.files if isinstance(error, LossNotFinite) else files) or "unknown"
        parts = [f"iteration {self.iter}: {' '.join(str(error).split())}", f"images: {images}"]
        if losses:
            parts.append(f"losses in the last iteration before: {', '.join(losses)}")
        if self.checkpointer.has_checkpoint():
            parts.append(f"the last checkpoint is {self.checkpointer.get_checkpoint_file()}")
        advice = "A lower SOLVER.BASE_LR or a longer SOLVER.WARMUP_ITERS may help"
        return f"{'; '.join(parts)}. {advice}"

    @classmethod
    def build_model(cls, cfg: CfgNode) -> torch.nn.Module:
        model = super().build_model(cfg)
        if cfg.MODEL.CHANNELS_LAST:
            model.to(memory_format=torch.channels_last)
            make_logits_contiguous(model)
            if cfg.MODEL.DEVICE == "cpu" and "pool_channels_last" in ACCELERATION:
                ACCELERATION.get("pool_channels_last")(model)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        return get_task(cfg).build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable:
        return get_task(cfg).build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str = None
    ) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name, output_folder)

    test_with_TTA = classmethod(evaluate_with_tta)

    def build_writers(self) -> List[EventWriter]:
        with failures_warned("TensorBoard's files"):
            return super().build_writers()
        path = os.path.join(self.cfg.OUTPUT_DIR, "metrics.json")
        return [CommonMetricPrinter(self.max_iter), JSONWriter(path)]


# What EvalHook and those behind it do with an evaluation.
_EVALUATION_HOOKS = (
    *(hooks.EvalHook, ValidationLoss, BestCheckpointer, EarlyStopping, EvaluationWriter),
)


class _Failed(BaseException):
    """Carries a :class:`UserError` past Detectron2's loop, which would log its frames."""

    def __init__(self, error: UserError):
        super().__init__(error)
        self.error = error
