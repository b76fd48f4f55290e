"""timm's "ResNet strikes back" backbones for Detectron2."""

import importlib
import importlib.util
import sys

__version__ = "0.3.0"

_MODULES = {
    "Checkpointer": ".checkpoint",
    "TimmBackbone": ".modeling",
    "Trainer": ".engine",
    "UserError": ".errors",
    "add_rsb_config": ".config",
    "optimize_for_inference": ".addons.accelerate",
}

__all__ = [*_MODULES, "model_zoo"]


def register_all() -> None:
    """Register this project's backbones, heads and models in Detectron2's registries.

    ``import rsb_d2`` does so, except in the console command ``rsb-d2``, whose programs call this
    function if they need Detectron2.

    Raises:
        MissingDetectron2Error: if Detectron2 is not installed; an ``ImportError``.
    """
    if importlib.util.find_spec("detectron2") is None:
        from .errors import MissingDetectron2Error

        raise MissingDetectron2Error()
    for name in (".checkpoint", ".config", ".modeling"):
        importlib.import_module(name, __name__)
    # The optional layers register the objects that the core may call.
    for layer in ("addons", "pretraining"):
        if importlib.util.find_spec(f"{__name__}.{layer}"):
            importlib.import_module(f"{__name__}.{layer}")


def __getattr__(name):
    # Each name is imported at its first use: the trainer alone imports all of Detectron2's engine,
    # data and evaluation.
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name], __name__), name)
    if name == "model_zoo":
        return importlib.import_module(".model_zoo", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if not getattr(sys.modules.get("rsb_d2_cli"), "is_running", False):
    register_all()
