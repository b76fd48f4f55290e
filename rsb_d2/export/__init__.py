"""A trained detector as one file that runs without Detectron2: ONNX, torch.export, TorchScript."""

from .comparison import Detections, Difference, compare
from .contract import input_contract
from .dataflow import make_dataflow
from .export import Exported, export_detector
from .running import run_onnx, run_torch_export, run_torchscript
from .traceable import make_traceable

__all__ = [
    "Detections",
    "Difference",
    "Exported",
    "compare",
    "export_detector",
    "input_contract",
    "make_dataflow",
    "make_traceable",
    "run_onnx",
    "run_torch_export",
    "run_torchscript",
]
