from .build import build_evaluator, check_evaluators, check_images, convert_test_sets
from .coco_evaluation import COCOEvaluator

__all__ = [
    "COCOEvaluator",
    "build_evaluator",
    "check_evaluators",
    "check_images",
    "convert_test_sets",
]
