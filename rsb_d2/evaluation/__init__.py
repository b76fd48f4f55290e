from .build import build_evaluator
from .coco_evaluation import COCOEvaluator

__all__ = ["COCOEvaluator", "build_evaluator"]
