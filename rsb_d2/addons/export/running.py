"""Running an exported file, and the model that it was made from, on one image."""

import copy
from typing import Callable, Tuple

import numpy as np
import torch
from torch import nn

from ...errors import UserError
from .comparison import Detections
from .traceable import OUTPUTS

Detector = Callable[[np.ndarray], Detections]


def import_onnx() -> Tuple:
    """Import ``onnx`` and ``onnxruntime``.

    Raises:
        UserError: if they are not installed.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as e:
        raise UserError(f"ONNX needs two packages more: pip install onnx onnxruntime ({e})") from e
    return onnx, onnxruntime


def on_cpu(model: nn.Module) -> nn.Module:
    """A model as a file of it is made and run: itself where it is on the CPU, else a copy there."""
    if all(parameter.device.type == "cpu" for parameter in model.parameters()):
        return model
    return copy.deepcopy(model).to("cpu")


def run_onnx(path: str, threads: int = 0) -> Detector:
    """Load an ONNX file into onnxruntime, on the CPU.

    Args:
        path (str): of an exported file.
        threads (int): to compute with; as many as onnxruntime thinks best by default.

    Returns:
        callable: from a uint8 image (H, W, 3) to its :class:`Detections`.
    """
    _, onnxruntime = import_onnx()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda image: Detections(*session.run(None, {"image": image}))


def run_torch_export(path: str) -> Detector:
    """Load a file of ``torch.export``; as :func:`run_onnx`."""
    with open(path, "rb") as f:  # by its name torch would ask for the ending .pt2
        function = torch.export.load(f).module()

    def run(image: np.ndarray) -> Detections:
        with torch.no_grad():
            return _detections(*function(torch.as_tensor(image))[: len(OUTPUTS)])

    return run


def run_model(model: nn.Module) -> Detector:
    """Run a detector of Detectron2 as it is; as :func:`run_onnx`."""

    def run(image: np.ndarray) -> Detections:
        batch = [{"image": torch.as_tensor(image).permute(2, 0, 1)}]
        with torch.no_grad():
            instances = model(batch)[0]["instances"]
            if not instances.has("pred_masks"):
                return _detections(
                    instances.pred_boxes.tensor, instances.scores, instances.pred_classes
                )
            # The masks before they are pasted into the image.
            instances = model.inference(batch, do_postprocess=False)[0]
            instances = instances[instances.pred_boxes.nonempty()]
            return _detections(
                instances.pred_boxes.tensor,
                instances.scores,
                instances.pred_classes,
                instances.pred_masks[:, 0],
            )

    return run


def _detections(*outputs: torch.Tensor) -> Detections:
    return Detections(*(output.cpu().numpy() for output in outputs))
