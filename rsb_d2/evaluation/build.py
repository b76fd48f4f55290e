"""The evaluator of a data set."""

from typing import List

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import (
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
)

from ..data.catalog import registered
from ..data.stock.packages import PANOPTIC, check_packages
from ..errors import UserError
from ..extensions import EVALUATORS
from .coco_evaluation import COCOEvaluator, ensure_json_file
from .older_numpy import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    LVISEvaluator,
)
from .predictions import prediction_folder

EVALUATOR_TYPES = (
    *("coco", "coco_panoptic_seg", "sem_seg", "lvis", "pascal_voc"),
    *("cityscapes_instance", "cityscapes_sem_seg"),
)


class NoEvaluatorError(UserError, NotImplementedError):
    """There is no evaluator of a type; ``DefaultTrainer.test`` then warns, and trains on."""


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str = None) -> DatasetEvaluator:
    """Build the evaluator of a data set as Detectron2's ``tools/train_net.py`` does.

    Other types of data sets are looked up in :data:`rsb_d2.extensions.EVALUATORS`. Data of
    ``thing_classes`` that has no ``evaluator_type`` is evaluated as COCO's.

    Args:
        cfg (CfgNode): ``OUTPUT_DIR`` and ``TEST.KEYPOINT_OKS_SIGMAS`` are read.
        dataset_name (str): a registered data set, whose ``evaluator_type`` says what is built.
        output_folder (str): where predictions are written; by default
            :func:`.predictions.prediction_folder`.

    Returns:
        DatasetEvaluator

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
        sigmas = cfg.TEST.KEYPOINT_OKS_SIGMAS
        evaluators.append(
            COCOEvaluator(dataset_name, output_dir=output_folder, kpt_oks_sigmas=sigmas)
        )
    if kind == "coco_panoptic_seg" and not PANOPTIC.is_missing():
        evaluators.append(COCOPanopticEvaluator(dataset_name, output_folder))
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)


def check_evaluators(cfg: CfgNode) -> None:
    """Check that :func:`build_evaluator` has an evaluator for each data set of ``DATASETS.TEST``.

    Args:
        cfg (CfgNode): not changed.

    Raises:
        UserError: if there is none of a data set's type, or a package is missing.
    """
    for name in cfg.DATASETS.TEST:
        _checked_type(name)


def convert_test_sets(cfg: CfgNode) -> None:
    """Convert the test sets of a script that have no file in COCO's format, before a training.

    :func:`build_evaluator` does it otherwise, at the first evaluation.

    Args:
        cfg (CfgNode): its ``DATASETS.TEST``, ``OUTPUT_DIR`` and ``MODEL.MASK_ON``.

    Raises:
        UserError: if one cannot be converted, or if ``MODEL.MASK_ON`` is set and an object has no
            mask.
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
