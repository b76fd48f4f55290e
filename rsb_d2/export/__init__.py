"""A trained detector as one file that runs without Detectron2: ONNX or TorchScript."""

from .comparison import Detections, Difference, compare
from .contract import input_contract
from .export import Exported, export_detector
from .running import run_onnx, run_torchscript
from .traceable import make_traceable

__all__ = [
    "Detections",
    "Difference",
    "Exported",
    "compare",
    "export_detector",
    "input_contract",
    "make_traceable",
    "run_onnx",
    "run_torchscript",
]
