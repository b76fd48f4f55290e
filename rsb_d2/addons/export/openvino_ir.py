"""OpenVINO's own format, its IR: from an ONNX graph, and running either."""

import os
import tempfile
from types import ModuleType
from typing import Tuple

import numpy as np

from ...errors import UserError
from .comparison import Detections
from .running import Detector

# Left alone, OpenVINO computes in bfloat16 where the processor does.
IN_FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}


def import_openvino() -> ModuleType:
    """Import ``openvino``, and ``onnx``, by whose format a detector gets there.

    Raises:
        UserError: if they are not installed.
    """
    try:
        import onnx  # noqa: F401
        import openvino
    except ImportError as e:
        raise UserError(
            f"OpenVINO's format needs two packages more: pip install openvino onnx ({e})"
        ) from e
    return openvino


def to_ir(onnx_graph: bytes) -> Tuple[bytes, bytes]:
    """Convert an ONNX graph; its weights stay float32.

    Args:
        onnx_graph (bytes): the content of an ONNX file.

    Returns:
        bytes, bytes: the contents of the ``.xml`` and of the ``.bin`` file.
    """
    openvino = import_openvino()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.xml")
        model = openvino.Core().read_model(onnx_graph)
        openvino.save_model(model, path, compress_to_fp16=False)
        with open(path, "rb") as xml, open(path[: -len("xml")] + "bin", "rb") as weights:
            return xml.read(), weights.read()


def run_openvino(path: str, weights: str = "", threads: int = 0) -> Detector:
    """Load an IR or an ONNX file into OpenVINO, on the CPU, in float32.

    Args:
        path (str): of the ``.xml`` or ``.onnx`` file.
        weights (str): of an IR's weights, if they are not in the ``.bin`` file beside it.
        threads (int): to compute with; as many as OpenVINO thinks best by default.

    Returns:
        callable: from a uint8 image (H, W, 3) to its :class:`Detections`.
    """
    core = import_openvino().Core()
    if weights:
        with open(path, "rb") as xml, open(weights, "rb") as f:
            model = core.read_model(xml.read(), f.read())
    else:
        model = core.read_model(path)
    compiled = core.compile_model(model, "CPU", {**IN_FLOAT32, "INFERENCE_NUM_THREADS": threads})
    request = compiled.create_infer_request()

    def run(image: np.ndarray) -> Detections:
        request.infer([np.ascontiguousarray(image)])
        # Copied, as the next image's are written to the same memory.
        return Detections(*(o.data.copy() for o in request.output_tensors))

    return run
