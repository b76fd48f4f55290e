"""The validation loss: the losses of training, on the test data, with nothing changed by it."""

import logging
from collections import Counter
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterable, Iterator, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList
from detectron2.data import detection_utils as utils
from detectron2.engine.hooks import HookBase
from detectron2.engine.train_loop import TrainerBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from timm.layers import DropBlock2d, DropPath
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.data import Dataset

from ..data.images import CheckedDatasetMapper
from ..data.loader import annotated_records, build_inference_loader
from ..data.random_state import random_state_kept
from ..evaluation.metrics import VALIDATION_PREFIX
from ..solver.ema import EMA_PREFIX, AveragedWeights
from ..utils import unwrap

logger = logging.getLogger(__name__)

# What computes something else in training than in evaluation, and no loss.
_RANDOM_OR_RUNNING = (_NormBase, _DropoutNd, DropPath, DropBlock2d)


def is_evaluated_now(trainer: TrainerBase, period: int) -> bool:
    """Whether Detectron2's ``EvalHook`` evaluates after this step; of the last step, it is later.

    Args:
        trainer (TrainerBase): in its ``after_step``.
        period (int): of the evaluations, in iterations; 0 for none.
    """
    done = trainer.iter + 1
    return period > 0 and done % period == 0 and done != trainer.max_iter


class ValidationLoss(HookBase):
    """Computes ``val_total_loss``, ``val_loss_cls`` and so on whenever ``EvalHook`` evaluates.

    It goes before the writers, which then write the values as they do all others.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        build_loader: Callable[[CfgNode], Iterable],
        average: AveragedWeights | None = None,
    ):
        """
        Args:
            cfg (CfgNode): its ``DATASETS.TEST``, ``INPUT`` and ``TEST.EVAL_PERIOD``.
            model (nn.Module): as it is trained; may be wrapped for data parallelism.
            build_loader (callable): from the config to the loader of the images, as
                :func:`build_validation_loader`.
            average (AveragedWeights or None): of the model; its losses have ``ema/`` before the
                name.
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
        with self.trainer.ended_by_signals(), random_state_kept():
            if self._loader is None:
                self._loader = self._build_loader(self._cfg)
            losses = validation_losses(self._model, self._loader)
            if self._average is not None:
                with self._average.beside(self._model) as averaged:
                    of_average = validation_losses(averaged, self._loader)
                losses.update({f"{EMA_PREFIX}{name}": v for name, v in of_average.items()})
        self.trainer.storage.put_scalars(smoothing_hint=False, **losses)
        text = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
        logger.info(f"Validation loss: {text}")


def build_validation_loader(cfg: CfgNode) -> Iterable:
    """Build a loader of ``DATASETS.TEST`` with ground truth, without augmentation.

    Args:
        cfg (CfgNode): images are resized as for evaluation; which images without annotations
            are left out is as for training.

    Returns:
        Iterable[list[dict]]: this process's share, one image at a time, each with the key
        ``"validation_index"``, its place in the whole.
    """
    records = annotated_records(cfg, "TEST")
    arguments = CheckedDatasetMapper.from_config(cfg, is_train=True)
    arguments["augmentations"] = utils.build_augmentation(cfg, is_train=False)
    arguments["recompute_boxes"] = False
    if _has_rle(records):
        arguments["instance_mask_format"] = "bitmask"
    return number_images(cfg, records, CheckedDatasetMapper(**arguments))


def number_images(
    cfg: CfgNode, records: Sequence[dict], mapper: Callable[[dict], dict]
) -> Iterable[list]:
    """Build a test loader whose images carry ``"validation_index"``, their place in ``records``."""
    return build_inference_loader(_Numbered(records), mapper, cfg.DATALOADER.NUM_WORKERS)


class _Numbered(Dataset):
    """Records with their place in the whole."""

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
    """Compute the losses of training, averaged over the images of all processes.

    The sampling of anchors and proposals is seeded by image, so that equal weights give equal
    losses, whatever the number of processes. Normalisation uses the running statistics and
    nothing is dropped out, as in evaluation. Weights, buffers, modes and the trainer's event
    storage are afterwards what they were; wrap the call in
    :func:`rsb_d2.data.random_state.random_state_kept` for the random state.

    Args:
        model (nn.Module): a detector that returns a dict of losses in training.
        loader (Iterable[list[dict]]): of :func:`build_validation_loader`.

    Returns:
        dict[str, float]: ``val_`` before the name of each loss, and ``val_total_loss``, their
        sum. The same in all processes; empty if there is no image.
    """
    model = unwrap(model)
    sums, count = Counter(), 0
    # Iteration 1, as at 0 Detectron2's models would draw pictures of the batch.
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
    """Let a model compute losses with its backbone, norms and dropout as in evaluation.

    Args:
        model (nn.Module): with its backbone in ``model.backbone``; the mode of each module is
            restored at the end.
    """
    modes = [(module, module.training) for module in model.modules()]
    in_backbone = {id(module) for module in model.backbone.modules()}
    try:
        # Not through train() and eval(), which modules may override, and which would lose what
        # was in evaluation on purpose.
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
    """Keep the model's plain numbers: RetinaNet's running ``loss_normalizer`` is one."""

    def numbers() -> Dict[str, Any]:
        return {k: v for k, v in vars(model).items() if isinstance(v, (int, float))}

    before = numbers()
    try:
        yield
    finally:
        for name in numbers().keys() - before.keys():
            delattr(model, name)
        vars(model).update(before)
