from .build import build_evaluator
from .classification import ClassificationEvaluator
from .coco_evaluation import COCOEvaluator

__all__ = ["ClassificationEvaluator", "COCOEvaluator", "build_evaluator"]
