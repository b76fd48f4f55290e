from ..addons.workbench.sample import make_sample_data
from ..pretraining.data import register_image_folders
from .coco_json import register_coco_json

__all__ = ["make_sample_data", "register_coco_json", "register_image_folders"]
