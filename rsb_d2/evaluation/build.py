"""The evaluator of a data set."""

import importlib.util
import logging
import os

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    SemSegEvaluator,
)

from ..data.classification import EVALUATOR_TYPE
from ..errors import UserError
from .classification import ClassificationEvaluator
from .coco_evaluation import COCOEvaluator

logger = logging.getLogger(__name__)


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str = None) -> DatasetEvaluator:
    """Build the evaluator of a data set in COCO's format, or of images with one label each.

    Args:
        cfg (CfgNode): only ``OUTPUT_DIR`` is read.
        dataset_name (str): a registered data set whose ``evaluator_type`` is ``"coco"`` or
            ``"coco_panoptic_seg"``, or of one of images with a label.
        output_folder (str): where predictions are written; by default ``OUTPUT_DIR/inference``.

    Returns:
        DatasetEvaluator

    Raises:
        UserError: for a data set of another type.
    """
    output_folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if evaluator_type == EVALUATOR_TYPE:
        classes = MetadataCatalog.get(dataset_name).thing_classes
        return ClassificationEvaluator(classes, output_folder)
    if evaluator_type == "coco":
        return COCOEvaluator(dataset_name, output_dir=output_folder)
    if evaluator_type == "coco_panoptic_seg":
        evaluators = [
            SemSegEvaluator(dataset_name, distributed=True, output_dir=output_folder),
            COCOEvaluator(dataset_name, output_dir=output_folder),
        ]
        if importlib.util.find_spec("panopticapi"):
            evaluators.append(COCOPanopticEvaluator(dataset_name, output_folder))
        else:
            logger.warning(
                "Panoptic quality is not computed, only that of boxes, masks and stuff: it needs "
                "panopticapi, https://github.com/cocodataset/panopticapi, which is not on PyPI."
            )
        return DatasetEvaluators(evaluators)
    raise UserError(
        f"DATASETS.TEST: {dataset_name!r} has evaluator type {evaluator_type!r}; only COCO-format "
        "data sets are evaluated here (override Trainer.build_evaluator for others)"
    )
