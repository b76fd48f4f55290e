"""timm's "ResNet strikes back" backbones for Detectron2."""

import importlib
import importlib.util

try:
    import detectron2  # noqa: F401
except ImportError as e:
    raise ImportError(
        "rsb_d2 needs Detectron2, which is not on PyPI under its own name: run "
        "`python tools/install_detectron2.py`, or build its main branch as its INSTALL.md says."
    ) from e

from .checkpoint import Checkpointer
from .config import add_rsb_config
from .errors import UserError
from .modeling import TimmBackbone

# The optional layers register the objects that the core may call.
for _layer in ("addons", "pretraining"):
    if importlib.util.find_spec(f"{__name__}.{_layer}"):
        importlib.import_module(f"{__name__}.{_layer}")

__version__ = "0.3.0"

__all__ = [
    "Checkpointer",
    "TimmBackbone",
    "Trainer",
    "UserError",
    "add_rsb_config",
    "model_zoo",
    "optimize_for_inference",
]


def __getattr__(name):
    # The trainer imports all of Detectron2's engine, data and evaluation, which takes time that a
    # program with only the backbone need not spend.
    if name == "Trainer":
        from .engine import Trainer

        return Trainer
    if name == "optimize_for_inference":
        from .addons.accelerate import optimize_for_inference

        return optimize_for_inference
    if name == "model_zoo":
        return importlib.import_module(".model_zoo", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
