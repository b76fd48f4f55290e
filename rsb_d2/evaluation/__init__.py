from .build import build_evaluator, check_evaluators
from .classification import ClassificationEvaluator
from .coco_evaluation import COCOEvaluator

__all__ = ["COCOEvaluator", "ClassificationEvaluator", "build_evaluator", "check_evaluators"]
