"""A trained detector in files that run without Detectron2: ONNX, OpenVINO, torch.export.

Uses ``addons.accelerate`` for the graph, ``addons.predict`` to find images and
``addons.workbench`` for a sample image.
"""

from .comparison import Detections, Difference, compare
from .export import Exported, export_detector, input_contract
from .files import run_onnx, run_openvino, run_torch_export
from .package import Package, export_package
from .quantization import Int8, Quantized
from .traceable import make_traceable

__all__ = [
    "Detections",
    "Difference",
    "Exported",
    "Int8",
    "Package",
    "Quantized",
    "compare",
    "export_detector",
    "export_package",
    "input_contract",
    "make_traceable",
    "run_onnx",
    "run_openvino",
    "run_torch_export",
]
