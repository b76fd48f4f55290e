"""Data sets of images with one label each, on which an image classifier is trained."""

from .datasets import EVALUATOR_TYPE
from .loading import build_test_loader, build_train_loader
from .registration import register_image_folders

__all__ = [
    "EVALUATOR_TYPE",
    "build_test_loader",
    "build_train_loader",
    "register_image_folders",
]
