"""Data sets of images with one label each: what an image classifier is trained on."""

from .dataset import EVALUATOR_TYPE
from .image_folder import register_image_folders
from .loading import build_test_loader, build_train_loader

__all__ = [
    "EVALUATOR_TYPE",
    "build_test_loader",
    "build_train_loader",
    "register_image_folders",
]
