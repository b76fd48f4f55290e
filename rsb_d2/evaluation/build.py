"""The evaluator of a data set."""

from typing import List

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
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
from .coco_evaluation import COCOEvaluator
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


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str = None) -> DatasetEvaluator:
    """Build the evaluator of a data set as Detectron2's ``tools/train_net.py`` does.

    Other types of data sets are looked up in :data:`rsb_d2.extensions.EVALUATORS`.

    Args:
        cfg (CfgNode): ``OUTPUT_DIR`` and ``TEST.KEYPOINT_OKS_SIGMAS`` are read.
        dataset_name (str): a registered data set, whose ``evaluator_type`` says what is built.
        output_folder (str): where predictions are written; by default
            :func:`.predictions.prediction_folder`.

    Returns:
        DatasetEvaluator

    Raises:
        UserError: for a data set of another type, or if its evaluator's package is missing.
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


def _checked_type(dataset_name: str) -> str:
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind is None:
        registered(dataset_name, "DATASETS.TEST")
    if kind not in EVALUATOR_TYPES and kind not in EVALUATORS:
        raise UserError(
            f"DATASETS.TEST: {dataset_name!r} has evaluator type {kind!r}; there are evaluators of "
            f"{', '.join(EVALUATOR_TYPES)} (override Trainer.build_evaluator for others)"
        )
    check_packages(dataset_name, "TEST")
    return kind
