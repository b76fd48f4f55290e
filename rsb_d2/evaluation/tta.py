"""Test-time augmentation of detectors, and its evaluation at the end of a training."""

import logging
from typing import Any, Dict

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, hooks
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, GeneralizedRCNNWithTTA
from detectron2.modeling.meta_arch import PanopticFPN
from torch import nn

from ..data.random_state import random_state_kept
from ..errors import UserError
from ..solver.ema import AveragedWeights, evaluate_with_average
from .results import prediction_folder

logger = logging.getLogger(__name__)

# Appended to the name of a task, or of a data set if there are several.
_SUFFIX = "_TTA"


def check_tta(cfg: CfgNode) -> None:
    """Check that Detectron2 can augment the model of a config at test time."""
    name = cfg.MODEL.META_ARCHITECTURE
    architecture = META_ARCH_REGISTRY.get(name)
    reason = None
    if not issubclass(architecture, GeneralizedRCNN) or issubclass(architecture, PanopticFPN):
        reason = f"MODEL.META_ARCHITECTURE is {name}"
    elif cfg.MODEL.KEYPOINT_ON:
        reason = "MODEL.KEYPOINT_ON is True"
    elif cfg.MODEL.LOAD_PROPOSALS:
        reason = "MODEL.LOAD_PROPOSALS is True"
    elif cfg.MODEL.ROI_HEADS.NAME == "RROIHeads":
        reason = "MODEL.ROI_HEADS.NAME is RROIHeads"
    if reason:
        raise UserError(
            "TEST.AUG.ENABLED: Detectron2 augments at test time what GeneralizedRCNN finds, boxes "
            f"and masks that are not rotated, and {reason}; write TEST.AUG.ENABLED False"
        )
    names = cfg.DATASETS.TEST
    taken = [name for name in names if f"{name}{_SUFFIX}" in names]
    if taken:
        raise UserError(
            f"DATASETS.TEST: with TEST.AUG.ENABLED, the augmented metrics of {taken[0]} are those "
            f"of {taken[0]}{_SUFFIX}; give the data set {taken[0]}{_SUFFIX} another name"
        )
    if not cfg.TEST.AUG.MIN_SIZES:
        raise UserError(
            "TEST.AUG.MIN_SIZES is empty: list the shorter sides that the images are resized to"
        )


def with_tta(cfg: CfgNode, model: nn.Module) -> GeneralizedRCNNWithTTA:
    """Wrap a detector so that it merges detections from several sizes and flips of an image.

    The model may be from :func:`rsb_d2.optimize_for_inference` or wrapped for data parallelism.
    Errors as :func:`check_tta`.
    """
    check_tta(cfg)
    wrapped = GeneralizedRCNNWithTTA(cfg, model)
    # A new module is in training mode, and an evaluation restores the mode of its model.
    wrapped.training = model.training
    return wrapped


def evaluate_with_tta(
    trainer_type: type[DefaultTrainer], cfg: CfgNode, model: nn.Module
) -> Dict[str, Any]:
    """Evaluate a model with augmentation, as Detectron2's ``tools/train_net.py`` does.

    Returns:
        dict: the result of ``trainer_type.test``, with ``_TTA`` appended to each name:
        ``"bbox_TTA"``.
    """
    logger.info("Running inference with test-time augmentation ...")
    evaluators = [
        trainer_type.build_evaluator(cfg, name, prediction_folder(cfg, name, "inference_TTA"))
        for name in cfg.DATASETS.TEST
    ]
    results = trainer_type.test(cfg, with_tta(cfg, model), evaluators)
    return {f"{name}{_SUFFIX}": figures for name, figures in results.items()}


class TTAEvaluation(hooks.EvalHook):
    """Detectron2's ``EvalHook`` for the end of a training only, also after early stopping.

    It comes before the writers, which then write its metrics like any other.
    """

    def __init__(self, average: AveragedWeights | None = None):
        super().__init__(0, self._evaluate)
        self._average = average

    def after_train(self):
        if self.trainer.stopped_early:
            self._do_eval()
        super().after_train()

    def _evaluate(self) -> Dict[str, Any]:
        trainer = self.trainer
        with trainer.interruptible(), random_state_kept():
            results = trainer.test_with_TTA(trainer.cfg, trainer.model)
            # Added to the results that the training returns and verifies.
            before = getattr(trainer, "_last_eval_results", {})
            trainer._last_eval_results = {**before, **results}
            if self._average:
                with self._average.on_device_of(trainer.model) as averaged:
                    test = trainer.test_with_TTA
                    results = evaluate_with_average(test, trainer.cfg, results, averaged)
        return results
