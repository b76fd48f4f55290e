"""The evaluator of a data set, by its ``evaluator_type``, and test-time augmentation."""

import copy
import glob
import importlib
import logging
import os
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List

import numpy as np
from detectron2 import evaluation
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer, hooks
from detectron2.evaluation import (
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
)
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, GeneralizedRCNNWithTTA
from detectron2.modeling.meta_arch import PanopticFPN
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch import nn

from ..data.builtin import PANOPTIC, check_packages, cityscapes_modules
from ..data.damaged import check_damaged, find_damaged
from ..data.datasets import registered
from ..data.loader import evaluated_records
from ..data.predictions import write_dataset_name
from ..data.random_state import random_state_kept
from ..errors import UserError
from ..extensions import EVALUATORS
from ..solver.ema import AveragedWeights, evaluate_with_average
from .coco_evaluation import COCOEvaluator, ensure_json_file
from .results import prediction_folder

EVALUATOR_TYPES = (
    *("coco", "coco_panoptic_seg", "sem_seg", "lvis", "pascal_voc"),
    *("cityscapes_instance", "cityscapes_sem_seg"),
)


class NoEvaluatorError(UserError, NotImplementedError):
    """Raised if a data set has no evaluator; ``DefaultTrainer.test`` then only warns."""


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str = None) -> DatasetEvaluator:
    """Build the evaluator of a data set as Detectron2's ``tools/train_net.py`` does.

    The ``evaluator_type`` of the data set selects it; other types are looked up in
    :data:`rsb_d2.extensions.EVALUATORS`. A data set with ``thing_classes`` but no
    ``evaluator_type`` is evaluated as COCO's. The predictions go to ``output_folder``, by default
    :func:`prediction_folder`.

    Raises:
        NoEvaluatorError: for a data set of another type.
        UserError: if the evaluator's package is missing, or a data set that is not in COCO's
            format cannot be converted.
    """
    output_folder = output_folder or prediction_folder(cfg, dataset_name)
    kind = _checked_type(dataset_name)
    if kind in EVALUATORS:
        return EVALUATORS.get(kind).from_config(cfg, dataset_name, output_folder)
    if kind == "lvis":
        return LVISEvaluator(dataset_name, output_dir=output_folder)
    if kind == "pascal_voc":
        return PascalVOCDetectionEvaluator(dataset_name)
    if kind == "cityscapes_instance":
        return CityscapesInstanceEvaluator(dataset_name)
    if kind == "cityscapes_sem_seg":
        return CityscapesSemSegEvaluator(dataset_name)
    evaluators: List[DatasetEvaluator] = []
    if kind in ("sem_seg", "coco_panoptic_seg"):
        evaluators.append(SemSegEvaluator(dataset_name, output_dir=output_folder))
    if kind in ("coco", "coco_panoptic_seg"):
        evaluators.append(
            COCOEvaluator(
                dataset_name,
                output_dir=output_folder,
                kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS,
                skipped=skipped_image_ids(cfg, dataset_name) if kind == "coco" else (),
            )
        )
    if kind == "coco_panoptic_seg" and not PANOPTIC.is_missing():
        evaluators.append(COCOPanopticEvaluator(dataset_name, output_folder))
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)


def skipped_image_ids(cfg: CfgNode, dataset_name: str) -> list:
    """Return the ids of the images that an evaluation leaves out (``INPUT.DAMAGED_IMAGES``)."""
    if cfg.INPUT.get("DAMAGED_IMAGES") != "skip":
        return []
    return find_damaged(cfg, dataset_name, evaluated_records(cfg, dataset_name)).image_ids


def check_images(cfg: CfgNode) -> None:
    """Decode the images of ``DATASETS.TEST``, and report the damaged ones.

    Raises:
        UserError: if there are any, unless ``INPUT.DAMAGED_IMAGES`` allows them.
    """
    for name in cfg.DATASETS.TEST:
        can_skip = _checked_type(name) == "coco"
        check_damaged(cfg, name, evaluated_records(cfg, name), can_skip=can_skip)


def check_evaluators(cfg: CfgNode) -> None:
    """Check that each data set of ``DATASETS.TEST`` has an evaluator, and its package."""
    for name in cfg.DATASETS.TEST:
        _checked_type(name)


def convert_test_sets(cfg: CfgNode) -> None:
    """Convert a script's test sets without a COCO file before the training.

    Otherwise :func:`build_evaluator` would convert them at the first evaluation. An object without
    a mask is an error if ``MODEL.MASK_ON`` is set.
    """
    for name in cfg.DATASETS.TEST:
        metadata = MetadataCatalog.get(name)
        if _type_of(name) == "coco" and name in DatasetCatalog and not metadata.get("json_file"):
            ensure_json_file(name, prediction_folder(cfg, name), with_masks=cfg.MODEL.MASK_ON)


def _type_of(dataset_name: str) -> str | None:
    metadata = MetadataCatalog.get(dataset_name)
    return metadata.get("evaluator_type") or ("coco" if metadata.get("thing_classes") else None)


def _checked_type(dataset_name: str) -> str:
    kind = _type_of(dataset_name)
    if kind is None:
        registered(dataset_name, "DATASETS.TEST")
    if kind not in EVALUATOR_TYPES and kind not in EVALUATORS:
        raise NoEvaluatorError(
            f"DATASETS.TEST: {dataset_name!r} has evaluator type {kind!r}; there are evaluators of "
            f"{', '.join(EVALUATOR_TYPES)} (override Trainer.build_evaluator for others)"
        )
    check_packages(dataset_name, "TEST")
    return kind


# lvis 0.5.3 needs np.float, which NumPy 1.24 removed; cityscapesscripts 2.3.0 needs np.in1d, which
# NumPy 2.4 removed. Both are the newest releases.


class _OlderNumPy:
    """NumPy with the removed names."""

    float = float

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def in1d(self, values: Any, among: Any, invert: bool = False) -> np.ndarray:
        return np.isin(values, among, invert=invert).ravel()


@contextmanager
def older_numpy(*modules: str) -> Iterator[None]:
    """Replace ``np`` in the named modules by an older NumPy inside the block."""
    loaded = [importlib.import_module(name) for name in modules]
    for module in loaded:
        module.np = _OlderNumPy()
    try:
        yield
    finally:
        for module in loaded:
            module.np = np


class LVISEvaluator(evaluation.LVISEvaluator):
    """Detectron2's evaluator, on today's NumPy."""

    def _eval_predictions(self, predictions):
        if self._output_dir:
            write_dataset_name(self._output_dir, self._metadata.name)
        super()._eval_predictions(predictions)

    def evaluate(self):
        with older_numpy("lvis.eval"):
            return super().evaluate()


class CityscapesInstanceEvaluator(evaluation.CityscapesInstanceEvaluator):
    """Detectron2's evaluator, on today's NumPy, without ``matches.json`` in the working directory.

    The package writes that file during its evaluation, and fails on today's number types.
    """

    def evaluate(self):
        comm.synchronize()
        if comm.get_rank() > 0:
            return None
        import cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling as package

        args = copy.copy(package.args)
        args.predictionPath = os.path.abspath(self._temp_dir)
        args.predictionWalk, args.colorized = None, False
        args.gtInstancesFile = os.path.join(self._temp_dir, "gtInstances.json")
        folder = PathManager.get_local_path(self._metadata.gt_dir)
        truth = glob.glob(os.path.join(folder, "*", "*_gtFine_instanceIds.png"))
        predictions = [package.getPrediction(path, args) for path in truth]
        with older_numpy(package.__name__):
            # The steps of its evaluateImgLists.
            package.setInstanceLabels(args)
            instances = package.getGtInstances(truth, args)
            matches = package.matchGtWithPreds(predictions, truth, instances, args)
            figures = package.computeAverages(package.evaluateMatches(matches, args), args)
        package.printResults(figures, args)
        self._working_dir.cleanup()
        return {"segm": {"AP": 100 * figures["allAp"], "AP50": 100 * figures["allAp50%"]}}


class CityscapesSemSegEvaluator(evaluation.CityscapesSemSegEvaluator):
    """Detectron2's evaluator, on today's NumPy."""

    def evaluate(self):
        with older_numpy(*cityscapes_modules("evaluation.evalPixelLevelSemanticLabeling")):
            return super().evaluate()


# ---- test-time augmentation ----

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
