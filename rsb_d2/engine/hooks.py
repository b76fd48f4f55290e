"""Hooks: checkpoints, metrics, validation loss, best checkpoint and early stopping."""

import json
import logging
import math
import os
import traceback
from collections import Counter
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterable, Iterator, List, Sequence, Set, Tuple

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList
from detectron2.data import detection_utils as utils
from detectron2.engine import hooks
from detectron2.engine.train_loop import TrainerBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, EventWriter
from timm.layers import DropBlock2d, DropPath
from torch import distributed as dist
from torch import nn
from torch.utils.data import Dataset

from ..checkpoint import Checkpointer, remove_old_checkpoints
from ..data.damaged import without_damaged
from ..data.loader import annotated_records, build_inference_loader, evaluated_records
from ..data.mapper import CheckedDatasetMapper
from ..data.random_state import random_state, random_state_kept, set_random_state
from ..evaluation.results import VALIDATION_PREFIX, best_mode, split_metric, uses_best_metric
from ..files import whole_file
from ..solver.ema import EMA_KEY, EMA_PREFIX, AveragedWeights
from ..utils import unwrap
from .signals import Interrupted, SignalWatch


class CheckpointWriter(hooks.HookBase):
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
    """Write ``model_final_ema.pth``, which any program takes as ``MODEL.WEIGHTS``."""
    checkpointer = WeightsCheckpointer(average.model, save_dir, **checkpointables)
    checkpointer.save(f"model_final_{EMA_KEY}", **config)


def gather_process_states(model: nn.Module) -> List[Dict[str, Any]]:
    """Gather the state that differs between processes; all processes must call it.

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
    """Restore the state of the process with this rank from :func:`gather_process_states`.

    With more processes than there were, the additional ones keep their own random state.
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

    ``output`` names the output in the message. A warning in ``known`` is not repeated.
    """
    try:
        yield
    except Exception as e:
        frame = traceback.extract_tb(e.__traceback__)[-1]
        reason = f"{type(e).__name__}: {' '.join(str(e).split())}"
        place = f"{os.path.basename(frame.filename)}, line {frame.lineno}"
        message = f"Cannot write {output}, the training continues: {reason} ({place})"
        if known is None or message not in known:
            logger.warning(message)
        if known is not None:
            known.add(message)


class SafeWriter(EventWriter):
    """A writer of metrics whose failures are warnings, one for each reason."""

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


class EvaluationWriter(hooks.HookBase):
    """A hook that writes the results of an evaluation at once, not at the next 20th iteration.

    The writers must write nothing twice.
    """

    def __init__(self, eval_period: int, writers: Sequence[EventWriter]):
        self._period = eval_period
        self._writers = writers

    def after_step(self):
        if self._period > 0 and (self.trainer.iter + 1) % self._period == 0:
            for writer in self._writers:
                writer.write()


logger = logging.getLogger(__name__)

# Layers that compute something else in training than in evaluation, and that are no losses.
_RANDOM_OR_RUNNING = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.AlphaDropout, nn.FeatureAlphaDropout),
    *(DropPath, DropBlock2d),
)


def is_evaluated_now(trainer: TrainerBase, period: int) -> bool:
    """Whether Detectron2's ``EvalHook`` evaluates in this step's ``after_step``.

    After the last step it evaluates in ``after_train``.
    """
    done = trainer.iter + 1
    return period > 0 and done % period == 0 and done != trainer.max_iter


class ValidationLoss(hooks.HookBase):
    """A hook that computes ``val_total_loss``, ``val_loss_cls``, … whenever ``EvalHook`` evaluates.

    It comes before the writers, which then write these values like any other.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        build_loader: Callable[[CfgNode], Iterable],
        average: AveragedWeights | None = None,
    ):
        """Args:
        cfg (CfgNode): its ``DATASETS.TEST``, ``INPUT`` and ``TEST.EVAL_PERIOD``.
        model (nn.Module): as it is trained; may be wrapped for data parallelism.
        build_loader (callable): as :func:`build_validation_loader`.
        average (AveragedWeights or None): the names of its losses start with ``ema/``.
        """
        self._cfg = cfg
        self._period = cfg.TEST.EVAL_PERIOD
        self._model = model
        self._average = average
        self._build_loader = build_loader
        self._loader = None

    def after_step(self):
        if is_evaluated_now(self.trainer, self._period):
            self._compute()

    def after_train(self):
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._compute()

    def _compute(self) -> None:
        with self.trainer.interruptible(), random_state_kept():
            if self._loader is None:
                self._loader = self._build_loader(self._cfg)
            losses = validation_losses(self._model, self._loader)
            if self._average is not None:
                with self._average.on_device_of(self._model) as averaged:
                    of_average = validation_losses(averaged, self._loader)
                losses.update({f"{EMA_PREFIX}{name}": v for name, v in of_average.items()})
        self.trainer.storage.put_scalars(smoothing_hint=False, **losses)
        text = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
        logger.info(f"Validation loss: {text}")


def build_validation_loader(cfg: CfgNode) -> Iterable:
    """Build a loader of ``DATASETS.TEST`` with ground truth, without augmentation.

    Images are resized as in evaluation; images without annotations are left out as in training.

    Returns:
        Iterable[list[dict]]: this process's share, one image at a time. Each has the key
        ``"validation_index"``, its position among the images of all processes.
    """
    records = annotated_records(cfg, "TEST")
    for name in cfg.DATASETS.TEST:
        records = without_damaged(cfg, name, evaluated_records(cfg, name), records)
    arguments = CheckedDatasetMapper.from_config(cfg, is_train=True)
    arguments["augmentations"] = utils.build_augmentation(cfg, is_train=False)
    arguments["recompute_boxes"] = False
    if _has_rle(records):
        arguments["instance_mask_format"] = "bitmask"
    return number_images(cfg, records, CheckedDatasetMapper(**arguments))


def number_images(
    cfg: CfgNode, records: Sequence[dict], mapper: Callable[[dict], dict]
) -> Iterable[list]:
    """Build a test loader whose images have their position in ``"validation_index"``."""
    return build_inference_loader(_Numbered(records), mapper, cfg.DATALOADER.NUM_WORKERS)


class _Numbered(Dataset):
    """Records with their position."""

    def __init__(self, records: Sequence[dict]):
        self._records = records if hasattr(records, "has_rle") else DatasetFromList(records)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        return {**self._records[index], "validation_index": index}


def _has_rle(records: Sequence[dict]) -> bool:
    if hasattr(records, "has_rle"):
        return records.has_rle()
    return any(
        isinstance(annotation.get("segmentation"), dict)
        for record in records
        for annotation in record.get("annotations", ())
    )


def validation_losses(model: nn.Module, loader: Iterable) -> Dict[str, float]:
    """Compute the training losses, averaged over the images of all processes.

    The sampling of anchors and proposals is seeded by image, so that equal weights give equal
    losses for any number of processes. As in evaluation, norms use their running statistics and
    dropout is off. Weights, buffers, modes and the trainer's event storage do not change; wrap the
    call in :func:`rsb_d2.data.random_state.random_state_kept` to keep the random state.

    Returns:
        dict[str, float]: ``val_`` before the name of each loss, and ``val_total_loss``, their
        sum. The same in all processes; empty if there is no image.
    """
    model = unwrap(model)
    sums, count = Counter(), 0
    # Iteration 1, because at 0 Detectron2's models would draw the batch.
    with loss_mode(model), torch.no_grad(), EventStorage(1):
        for batch in loader:
            _seed(batch[0]["validation_index"])
            with _attributes_kept(model):
                losses = model(batch)
            sums.update(
                {f"{VALIDATION_PREFIX}{name}": loss.item() for name, loss in losses.items()}
            )
            count += len(batch)
    total, num_images = Counter(), 0
    for sums_of_process, count_of_process in comm.all_gather((sums, count)):
        total.update(sums_of_process)
        num_images += count_of_process
    means = {name: total[name] / num_images for name in sorted(total)}
    return {f"{VALIDATION_PREFIX}total_loss": sum(means.values()), **means} if means else {}


@contextmanager
def loss_mode(model: nn.Module) -> Iterator[None]:
    """Set a model to compute losses with its backbone, norms and dropout as in evaluation."""
    modes = [(module, module.training) for module in model.modules()]
    in_backbone = {id(module) for module in model.backbone.modules()}
    try:
        # Not by train() and eval(): modules may override them, and modules that were in evaluation
        # mode on purpose would lose it.
        for module, _ in modes:
            module.training = not (
                id(module) in in_backbone or isinstance(module, _RANDOM_OR_RUNNING)
            )
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _seed(seed: int) -> None:
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(seed)


@contextmanager
def _attributes_kept(model: nn.Module) -> Iterator[None]:
    """Restore the model's plain numbers, such as RetinaNet's running ``loss_normalizer``."""

    def numbers() -> Dict[str, Any]:
        return {k: v for k, v in vars(model).items() if isinstance(v, (int, float))}

    before = numbers()
    try:
        yield
    finally:
        for name in numbers().keys() - before.keys():
            delattr(model, name)
        for name, value in before.items():
            setattr(model, name, value)


class MetricHistory:
    """The values of one metric over a run, in a JSON file that outlives the process.

    They are not in the checkpoints, which are written before the evaluation of their iteration.

    Args:
        path (str): of the file.
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
        """The number of iterations after which the best value was first reached, and the value."""
        finite = [(v, done) for done, v in self._values.items() if math.isfinite(v)]
        if not finite:
            return None
        sign = -1 if self.mode == "max" else 1
        value, done = min(finite, key=lambda pair: (sign * pair[0], pair[1]))
        return done, value

    @property
    def num_since_best(self) -> int:
        """The number of evaluations after the best one; of all evaluations if there is no best."""
        best = self.best
        return sum(done > best[0] for done in self._values) if best else len(self._values)

    def knows(self, iterations_done: int) -> bool:
        """Whether there is a value from the evaluation after ``iterations_done`` iterations."""
        return iterations_done in self._values

    def load(self, iterations_done: int) -> None:
        """Read the values that an earlier process wrote, up to the iteration to resume from."""
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
        """Add a value and write the file; NaN is kept, but is never the best."""
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
    """Detectron2's hook, whose best value survives a resume.

    ``model_best.pth`` holds the evaluated weights and the class names, no optimizer; a run is not
    resumed from it. Only the main process has this hook.
    """

    def __init__(
        self,
        eval_period: int,
        model: nn.Module,
        output_dir: str,
        history: MetricHistory,
        **checkpointables,
    ):
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
        if iteration != self.trainer.storage.iter:  # from an earlier evaluation
            # Detectron2 smooths all values but those of evaluations and the learning rate.
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
    """Ends the training loop as at the last iteration.

    Not an ``Exception``, which Detectron2 would log as an error.
    """


class EarlyStopping(hooks.HookBase):
    """A hook that ends the training of all processes when a metric no longer improves.

    ``model_final.pth`` is written as at the end of any run.
    """

    def __init__(self, eval_period: int, patience: int, history: MetricHistory):
        """Args:
        eval_period (int): as in ``EvalHook``.
        patience (int): number of evaluations in a row, 1 or more, without a better value.
        history (MetricHistory): in the main process, filled by a :class:`BestCheckpointer` before.
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
    """Build the hooks of the best checkpoint and of early stopping; they come after ``EvalHook``.

    If the metric is that of the averaged weights, those are saved.
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
