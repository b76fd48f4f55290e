"""From a detector to a file that has been run, and found to compute the same."""

import io
import json
import os
import warnings
from dataclasses import dataclass
from typing import Dict, List, Tuple

import numpy as np
import torch
from detectron2.config import CfgNode
from PIL import Image
from torch import nn

from ..data.class_names import ClassNames
from ..errors import UserError
from ..files import whole_file
from ..predict.predictor import Predictor
from .comparison import Detections, Difference, compare
from .contract import input_contract
from .dataflow import make_dataflow, smallest_side
from .running import (
    Detector,
    import_onnx,
    on_cpu,
    run_model,
    run_onnx,
    run_torch_export,
    run_torchscript,
)
from .traceable import OUTPUTS, make_traceable

# RoiAlign with the half-pixel offset of ROIAlignV2 is of 16.
_OPSET = 17

_ONNX, _TORCH_EXPORT, _TORCHSCRIPT = ".onnx", ".pt2", ".ts"


@dataclass
class Exported:
    """What :func:`export_detector` did.

    Args:
        path (str): the file.
        contract (dict[str, str]): its metadata.
        sizes (list[tuple[int, int]]): height and width of the images it was compared on.
        difference (Difference): from the PyTorch model.
    """

    path: str
    contract: Dict[str, str]
    sizes: List[Tuple[int, int]]
    difference: Difference


def export_detector(
    cfg: CfgNode,
    model: nn.Module,
    classes: ClassNames,
    path: str,
    images: List[np.ndarray],
) -> Exported:
    """Write a detector to a file, unless the file does not compute what the detector does.

    Args:
        cfg (CfgNode): of the model.
        model (nn.Module): in evaluation mode; its parameters will not require gradients any
            more. Of one on a GPU a copy on the CPU is exported, for files that run anywhere.
        classes (ClassNames): of the model.
        path (str): ends in ``.onnx``, in ``.pt2`` for ``torch.export``, or in ``.ts`` for
            TorchScript.
        images (list[ndarray]): to compare on: uint8 (H, W, 3), channels as in ``INPUT.FORMAT``.
            The first is also compared lying on its side and at two thirds of its size, so that
            there is more than one size.

    Returns:
        Exported

    Raises:
        UserError: if the model or the path cannot be used; if the file and the model differ, or
            if nothing was detected, so that nothing could be compared. Nothing is written then,
            and a file that was there before is left.
    """
    wrap, write, load = _format_of(path)
    model = on_cpu(model)
    traceable = wrap(model.requires_grad_(False))
    contract = input_contract(cfg, classes)
    if wrap is make_dataflow:
        contract["input_min_side"] = str(smallest_side(model))
    predictor = Predictor(cfg, model, classes)
    sized = [_resized(predictor, image) for image in images]
    sized = _of_several_sizes(sized, int(contract["input_min_side"]))
    expected = [run_model(model)(image) for image in sized]
    if not any(len(detections) for detections in expected):
        raise UserError(
            f"nothing is detected in the {len(images)} images to compare on, with scores of "
            f"{contract['score_threshold']} or more: give others with --images"
        )
    content = write(traceable, sized[0], contract)
    with whole_file(path) as f:
        f.write(content)
        f.flush()
        difference = _compare_all(load(f.name), sized, expected, contract, path)
    return Exported(path, contract, [image.shape[:2] for image in sized], difference)


def check_output(path: str) -> None:
    """Raise a :class:`UserError` unless ``path`` is one that a file can be exported to."""
    _format_of(path)
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path):
        raise UserError(f"--output: {path} is a folder: name a file in it")
    if not os.path.isdir(folder):
        raise UserError(f"--output: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise UserError(f"--output: cannot write to the folder {folder}")


def _format_of(path: str) -> Tuple:
    if path.endswith(_ONNX):
        import_onnx()
        return make_traceable, _to_onnx, run_onnx
    if path.endswith(_TORCH_EXPORT):
        return make_dataflow, _to_torch_export, run_torch_export
    if path.endswith(_TORCHSCRIPT):
        return make_traceable, _to_torchscript, run_torchscript
    raise UserError(
        f"--output: {path} must end in {_ONNX}, in {_TORCH_EXPORT} for torch.export or in "
        f"{_TORCHSCRIPT} for TorchScript; --format detectron2 makes a folder"
    )


def _of_several_sizes(images: List[np.ndarray], min_side: int) -> List[np.ndarray]:
    for image in images:
        height, width = image.shape[:2]
        if min(height, width) < min_side:
            raise UserError(
                f"an image to compare on is resized to {width} x {height}, but the file takes "
                f"sides of {min_side} pixels or more: give others with --images, or raise "
                "INPUT.MIN_SIZE_TEST and INPUT.MAX_SIZE_TEST"
            )
    first = Image.fromarray(images[0])
    smaller = first.resize([max(min_side, side * 2 // 3) for side in first.size])
    return [*images, np.array(first.transpose(Image.Transpose.ROTATE_90)), np.array(smaller)]


def _resized(predictor: Predictor, image: np.ndarray) -> np.ndarray:
    return predictor.prepare(image)["image"].permute(1, 2, 0).contiguous().numpy()


def _compare_all(
    detector: Detector,
    images: List[np.ndarray],
    expected: List[Detections],
    contract: Dict[str, str],
    path: str,
) -> Difference:
    total = Difference()
    for image, detections in zip(images, expected):
        try:
            found = detector(image)
            total.add(
                compare(
                    detections,
                    found,
                    float(contract["score_threshold"]),
                    int(contract["max_detections"]),
                )
            )
        except UserError as e:
            height, width = image.shape[:2]
            raise UserError(
                f"{path} was not written, as it differs from the model on an image of "
                f"{width} x {height}: {e}"
            ) from None
    return total


def _to_torchscript(traceable: nn.Module, image: np.ndarray, contract: Dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with _quiet(), torch.no_grad():
        traced = torch.jit.trace(traceable, torch.as_tensor(image), check_trace=False)
        torch.jit.save(traced, buffer, _extra_files={"metadata.json": json.dumps(contract)})
    return buffer.getvalue()


def _to_torch_export(traceable: nn.Module, image: np.ndarray, contract: Dict[str, str]) -> bytes:
    any_side = torch.export.Dim.AUTO
    buffer = io.BytesIO()
    with _quiet(), torch.no_grad():
        program = torch.export.export(
            traceable,
            (torch.as_tensor(image),),
            dynamic_shapes={"image": {0: any_side, 1: any_side}},
            strict=False,
        )
        torch.export.save(program, buffer, extra_files={"metadata.json": json.dumps(contract)})
    return buffer.getvalue()


def _to_onnx(traceable: nn.Module, image: np.ndarray, contract: Dict[str, str]) -> bytes:
    onnx, _ = import_onnx()
    with torch.no_grad():
        num_outputs = len(traceable(torch.as_tensor(image)))
    names = list(OUTPUTS[:num_outputs])
    buffer = io.BytesIO()
    with _quiet(), torch.no_grad():
        # By tracing: the exporter by torch.export does not take Detectron2's data structures.
        torch.onnx.export(
            traceable,
            (torch.as_tensor(image),),
            buffer,
            dynamo=False,
            opset_version=_OPSET,
            input_names=["image"],
            output_names=names,
            dynamic_axes={
                "image": {0: "height", 1: "width"},
                **{name: {0: "detections"} for name in names},
            },
        )
    model = onnx.load_from_string(buffer.getvalue())
    for key, value in contract.items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model)
    return model.SerializeToString()


class _quiet(warnings.catch_warnings):
    """Hides that tracing is deprecated, and that it fixes what is in fact the same every time."""

    def __enter__(self):
        super().__enter__()
        warnings.simplefilter("ignore")
