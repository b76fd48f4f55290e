from .build import build_evaluator, check_evaluators
from .coco_evaluation import COCOEvaluator

__all__ = ["COCOEvaluator", "build_evaluator", "check_evaluators"]
