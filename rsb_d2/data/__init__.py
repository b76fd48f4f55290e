from .coco_json import register_coco_json

__all__ = ["register_coco_json"]
