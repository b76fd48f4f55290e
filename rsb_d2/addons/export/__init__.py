"""A trained detector in files that run without Detectron2: ONNX, OpenVINO, torch.export.

Uses ``addons.predict`` to find images and ``addons.workbench`` for a sample image.
"""

from .comparison import Detections, Difference, compare
from .contract import input_contract
from .dataflow import make_dataflow
from .export import Exported, export_detector
from .openvino_ir import run_openvino
from .running import run_onnx, run_torch_export
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
    "run_openvino",
    "run_torch_export",
]
