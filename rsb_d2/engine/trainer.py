"""Detectron2's default trainer with this project's parts, for runs that survive interruptions."""

import errno
import logging
import os
import shutil
import sys
import weakref
from contextlib import contextmanager
from typing import Any, Dict, Iterable, Iterator, List, Mapping

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, create_ddp_model, hooks
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter
from detectron2.utils.logger import setup_logger
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn

from ..checkpoint import Checkpointer, files_of_run, remove_leftovers, set_aside
from ..checkpoint.run_folder import CONFIG_KEY
from ..config.checks import check_keypoints
from ..config.defaults import check_has_keys
from ..config.dry_run import dry_run
from ..data.class_names import stored_class_names
from ..data.loader import TrainLoader, epoch_size
from ..data.random_state import random_state_kept
from ..errors import UserError
from ..evaluation import build_evaluator, convert_test_sets
from ..evaluation.build import TTAEvaluation, evaluate_with_tta
from ..evaluation.results import split_metric
from ..extensions import ACCELERATION, LOGGERS
from ..modeling import TimmBackbone, TimmLastStage
from ..modeling.heads import FastRPN, make_logits_contiguous
from ..solver import build_optimizer
from ..solver.ema import AverageUpdate, build_average, evaluate_with_average
from ..solver.epochs import check_resolved
from ..utils import unwrap
from .cuda_graphs import RecordedPart, check_cuda_graphs
from .hooks import (
    BestCheckpointer,
    CheckpointWriter,
    EarlyStopping,
    EvaluationWriter,
    SafeWriter,
    StopTraining,
    ValidationLoss,
    build_best_hooks,
    failures_warned,
    gather_process_states,
    save_average,
    set_process_state,
    share_buffers,
)
from .signals import Interrupted, SignalWatch
from .tasks import check_config, get_task
from .train_step import LossNotFinite, StepTrainer, amp_dtype

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """The trainer of ``train_net.py``: Detectron2's, with the methods overridden that it offers.

    A run that is interrupted and resumed takes the same steps as an uninterrupted one: in addition
    to Detectron2's content, checkpoints hold the position in the data and the random state of every
    process. SIGTERM and SIGINT end :meth:`train` with a checkpoint and ``SystemExit``.

    Args:
        cfg (CfgNode): with the keys of :func:`rsb_d2.add_rsb_config`.

    Attributes:
        stopped_early (bool): whether ``SOLVER.EARLY_STOP_PATIENCE`` has ended the training.
    """

    stopped_early = False

    def __init__(self, cfg: CfgNode):
        # DefaultTrainer's constructor would build another inner trainer and checkpointer.
        TrainerBase.__init__(self)
        self._check_config(cfg)
        self._check_data(cfg)
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        self._earlier_files = files_of_run(cfg.OUTPUT_DIR)  # before this run writes any
        self._process_states: List[Dict[str, Any]] = []
        self._has_failed = False
        self.signals = SignalWatch(comm.get_world_size())

        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        if isinstance(data_loader, TrainLoader):
            check_resolved(cfg, epoch_size(cfg, data_loader.num_records))
            signals = self.signals
            data_loader.is_ending = lambda: signals.received is not None
        model = create_ddp_model(model, broadcast_buffers=False)
        self._trainer = StepTrainer(
            model, data_loader, optimizer, self.signals, cfg.SOLVER.ACCUMULATE_STEPS, amp_dtype(cfg)
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self._average = build_average(cfg, model)
        self._classes = stored_class_names(cfg)
        self.checkpointer = Checkpointer(
            model,
            cfg.OUTPUT_DIR,
            trainer=weakref.proxy(self),
            **self._classes,
            **({"ema": self._average} if self._average else {}),
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())
        prepare_for_training(model, cfg)

    def _check_config(self, cfg: CfgNode) -> None:
        # Models and optimizers of a subclass may read other values.
        if any(map(self._overrides, ("build_model", "build_optimizer", "build_lr_scheduler"))):
            check_has_keys(cfg, "")
        else:
            check_config(cfg)

    def _check_data(self, cfg: CfgNode) -> None:
        if not self._overrides("build_train_loader"):
            check_keypoints(cfg)
        if not self._overrides("build_evaluator"):
            convert_test_sets(cfg)

    def _overrides(self, name: str) -> bool:
        """Whether a subclass overrides a method of this class."""
        classes = type(self).__mro__
        return any(name in vars(cls) for cls in classes[: classes.index(Trainer)])

    def build_hooks(self) -> List[hooks.HookBase]:
        """Build the hooks in Detectron2's order: checkpoint, evaluation, writers."""
        cfg, period = self.cfg, self.cfg.TEST.EVAL_PERIOD
        task = get_task(cfg)
        ours = [hooks.IterationTimer(), hooks.LRScheduler()]
        if cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(self.model):
            loader_cfg = cfg.clone()
            loader_cfg.defrost()
            loader_cfg.DATALOADER.NUM_WORKERS = 0  # as in Detectron2, to save memory
            loader = self.build_train_loader(loader_cfg)
            ours.append(hooks.PreciseBN(period, self.model, loader, cfg.TEST.PRECISE_BN.NUM_ITER))
        if self._average:
            ours.append(AverageUpdate(self._average))
        checkpoint_period, num_kept = cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.CHECKPOINT_KEEP
        ours.append(CheckpointWriter(checkpoint_period, num_kept, period, self.signals))
        ours.append(hooks.EvalHook(period, self._evaluate))
        if cfg.TEST.AUG.ENABLED:
            ours.append(TTAEvaluation(self._average))
        if cfg.TEST.VAL_LOSS:
            build_loader = task.build_validation_loader
            ours.append(ValidationLoss(cfg, self.model, build_loader, self._average))
        ours += build_best_hooks(cfg, self.model, self._average, **self._classes)
        if comm.is_main_process():
            writers = [SafeWriter(writer) for writer in self.build_writers()]
            files = [w for w in writers if not isinstance(w.writer, CommonMetricPrinter)]
            ours += [
                hooks.PeriodicWriter(writers, period=20),
                EvaluationWriter(period, files),
                task.build_picture_writer(cfg),  # draws what the writers have written
            ]
            loggers = [SafeWriter(LOGGERS.get(name)(cfg)) for name in dict.fromkeys(cfg.LOGGERS)]
            if loggers:  # which send the pictures
                ours += [hooks.PeriodicWriter(loggers, 20), EvaluationWriter(period, loggers)]
        return ours

    def resume_or_load(self, resume: bool = True) -> None:
        """Resume the run in ``OUTPUT_DIR``, or load ``MODEL.WEIGHTS`` and start a new run.

        The files of an earlier run are moved to ``OUTPUT_DIR/earlier`` when a new one starts.
        Errors as :meth:`rsb_d2.Checkpointer.resume_or_load`.
        """
        folder = self.cfg.OUTPUT_DIR
        if comm.is_main_process() and os.path.isdir(folder):
            remove_leftovers(folder)
        comm.synchronize()
        super().resume_or_load(resume)
        if not (resume and self.checkpointer.has_checkpoint()):
            self._set_earlier_run_aside()  # only now, as its weights may have been loaded

    def _set_earlier_run_aside(self) -> None:
        if comm.is_main_process():
            set_aside(self.cfg.OUTPUT_DIR, self._earlier_files, has_begun=True)
        self._earlier_files = []
        comm.synchronize()

    def train(self):
        """Train as Detectron2 does, until ``SOLVER.MAX_ITER`` or early stopping.

        Raises:
            SystemExit: after SIGTERM or SIGINT, with the status that a shell expects, 143 or 130.
            UserError: if the loss is not finite, if too many images are bad, or if the disk is
                full. The checkpoints written so far stay.
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
                "--resume continues from there."
            )
            sys.exit(128 + e.number)
        finally:
            self.signals.stop()

    def before_train(self):
        if self._process_states:
            set_process_state(self.model, self._process_states)
        with self._user_errors_raised():
            super().before_train()
            if self._lacks_evaluation():
                logger.info(f"Evaluating after {self.start_iter} iterations: it was interrupted.")
                self.iter = self.storage.iter = self.start_iter - 1
                for hook in self._hooks:
                    if isinstance(hook, _EVALUATION_HOOKS):
                        hook.after_step()

    def before_step(self):
        with self._user_errors_raised():
            super().before_step()

    def run_step(self):
        with self._user_errors_raised():
            try:
                super().run_step()
            except FloatingPointError as e:
                raise UserError(self._explain_divergence(e)) from e

    def after_step(self):
        with self._user_errors_raised():
            super().after_step()

    def after_train(self):
        self.iter = min(self.iter, self.max_iter)  # larger if nothing was left to do
        if self._has_failed:  # no evaluation, no pictures
            self.storage.iter = self.iter
            for hook in self._hooks:
                if isinstance(hook, hooks.PeriodicWriter):
                    hook.after_train()
        else:
            with self._user_errors_raised():
                super().after_train()

    def save_checkpoint(self, name: str) -> None:
        """Save everything that a resume needs; all processes must call it.

        ``name`` is the file's name in ``OUTPUT_DIR``, without ``.pth``.
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
                "The checkpoint has no position in the data: the run starts at the beginning of it."
            )

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a signal end the block, such as a long evaluation between two steps.

        A single process then writes a checkpoint from which a resume repeats the block. Several
        processes have written one before the block.
        """
        if comm.get_world_size() > 1:
            with self.signals.exit_at_once():
                yield
            return
        try:
            with self.signals.raise_at_once():
                yield
        except Interrupted:
            if self.iter + 1 < self.max_iter:
                self.save_checkpoint(f"model_{self.iter:07d}")
            raise

    def _evaluate(self) -> dict:
        with self.interruptible(), random_state_kept():
            results = self._last_eval_results = self.test(self.cfg, self.model)
            if self._average:
                with self._average.on_device_of(self.model) as averaged:
                    results = evaluate_with_average(self.test, self.cfg, results, averaged)
        return results

    def _lacks_evaluation(self) -> bool:
        """Whether an earlier process was killed between a checkpoint and its evaluation."""
        period, done = self.cfg.TEST.EVAL_PERIOD, self.start_iter
        if done in (0, self.max_iter) or period <= 0 or done % period:
            return False
        best = [hook for hook in self._hooks if isinstance(hook, BestCheckpointer)]
        # The main process decides for all.
        return comm.all_gather(any(not hook.history.knows(done) for hook in best))[0]

    @contextmanager
    def _user_errors_raised(self) -> Iterator[None]:
        """End the training without a traceback for errors that the user can fix."""
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
        """Return one line with the iteration, losses, images and last checkpoint."""
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
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        try:
            model = super().build_model(cfg)
        except UserError:
            raise
        except Exception:
            dry_run(cfg, True, get_task(cfg).build_and_run)  # names the keys in one line
            raise
        if cfg.MODEL.CHANNELS_LAST:
            model.to(memory_format=torch.channels_last)
            make_logits_contiguous(model)
            if cfg.MODEL.DEVICE == "cpu" and "pool_channels_last" in ACCELERATION:
                ACCELERATION.get("pool_channels_last")(model)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
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
        """Build Detectron2's writers; without TensorBoard if its files cannot be written."""
        with failures_warned("TensorBoard's files"):
            return super().build_writers()
        path = os.path.join(self.cfg.OUTPUT_DIR, "metrics.json")
        return [CommonMetricPrinter(self.max_iter), JSONWriter(path)]


def prepare_for_training(model: nn.Module, cfg: CfgNode) -> None:
    """Replace layers of a model, in place, by faster ones with equal results.

    ``MODEL.TIMM.FOLD_NORM`` folds fixed norms, ``MODEL.COMPILE`` compiles, ``MODEL.CUDA_GRAPHS``
    records CUDA graphs, and a stock RPN selects its proposals before it decodes them. Names and
    values of the weights stay.
    (``MODEL.CHANNELS_LAST`` also matters for evaluation, so :meth:`Trainer.build_model` applies
    it.)
    """
    model = unwrap(model)
    rpn = getattr(model, "proposal_generator", None)
    if FastRPN.takes(rpn):
        model.proposal_generator = FastRPN.from_stock(rpn)
    if cfg.MODEL.TIMM.FOLD_NORM:
        for module in list(model.modules()):
            if isinstance(module, (TimmBackbone, TimmLastStage)) and module.norm_eval:
                module.fold_norms_in_training()
    if cfg.MODEL.COMPILE:
        check_compiler(cfg)
        get_task(cfg).compile(model)
    if cfg.MODEL.CUDA_GRAPHS:
        check_cuda_graphs(cfg, comm.get_world_size())
        for part in get_task(cfg).parts_to_record(model):
            part.forward = RecordedPart(part)


def check_compiler(cfg: CfgNode) -> None:
    """Check that ``torch.compile`` finds a C++ compiler for the CPU, long before it needs one."""
    if cfg.MODEL.DEVICE.startswith("cuda"):
        return
    from torch._inductor import config as inductor_config

    names = inductor_config.cpp.cxx
    names = names if isinstance(names, (list, tuple)) else (names,)
    if not any(name and shutil.which(name) for name in names):
        raise UserError(
            "MODEL.COMPILE needs a C++ compiler, and there is no g++; install one, name it in the "
            "environment variable CXX, or write False"
        )


# EvalHook and the hooks that use its results.
_EVALUATION_HOOKS = (
    *(hooks.EvalHook, ValidationLoss, BestCheckpointer, EarlyStopping, EvaluationWriter),
)


class _Failed(BaseException):
    """Carries a :class:`UserError` through Detectron2's loop, which would log its traceback."""

    def __init__(self, error: UserError):
        super().__init__(error)
        self.error = error
