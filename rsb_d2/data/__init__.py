import importlib

__all__ = ["register_coco_json"]


def __getattr__(name):
    # At its first use, as it imports Detectron2, which reading and checking files does not need.
    if name == "register_coco_json":
        return importlib.import_module(".coco_json", __name__).register_coco_json
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
