"""The training procedures A1 to A3 of "ResNet strikes back", in the trainer of the core."""

from ..extensions import DATASET_SOURCES, EVALUATORS, TASKS
from .classifier import ImageClassifier

TASKS.register("ImageClassifier", "rsb_d2.pretraining.task.ClassificationTask")
EVALUATORS.register("image_classification", "rsb_d2.pretraining.evaluation.ClassificationEvaluator")
DATASET_SOURCES.register("image_classification", "rsb_d2.pretraining.data.register_image_folders")

__all__ = ["ImageClassifier"]
