"""The kinds of files that a detector is written to, by the endings of their names."""

import io
import json
import warnings
from dataclasses import dataclass
from typing import Callable, Dict, Tuple

import numpy as np
import torch
from torch import nn

from ...errors import UserError
from .dataflow import make_dataflow
from .openvino_ir import import_openvino, run_openvino, to_ir
from .running import Detector, import_onnx, run_onnx, run_torch_export
from .traceable import OUTPUTS, make_traceable

# RoiAlign with the half-pixel offset of ROIAlignV2 is of 16.
_OPSET = 17

ONNX, OPENVINO, TORCH_EXPORT = ".onnx", ".xml", ".pt2"

NO_TORCHSCRIPT = (
    "TorchScript is deprecated by torch and no longer written; write a file that ends in "
    f"{TORCH_EXPORT} for torch.export or in {ONNX}"
)


@dataclass
class Format:
    """One kind of file.

    Args:
        endings (tuple[str, ...]): of the files; that of the user's name first.
        wrap (callable): from a detector to a module that can be written.
        write (callable): from that module, a uint8 image (H, W, 3), the metadata and whether
            images have the size of that one alone, to the contents of the files.
        load (callable): from the paths of the files to a :data:`Detector`.
        check (callable): raises a :class:`UserError` if a package is missing.
        can_fix_size (bool): whether it can be for images of one size.
    """

    endings: Tuple[str, ...]
    wrap: Callable[[nn.Module], nn.Module]
    write: Callable[[nn.Module, np.ndarray, Dict[str, str], bool], Tuple[bytes, ...]]
    load: Callable[..., Detector]
    check: Callable[[], object] = lambda: None
    can_fix_size: bool = False


def format_of(path: str) -> Format:
    """The format that the name of a file asks for.

    Args:
        path (str): of the file.

    Raises:
        UserError: if there is none, or a package for it is missing.
    """
    for kind in _FORMATS:
        if path.endswith(kind.endings[0]):
            kind.check()
            return kind
    if path.endswith(".ts"):
        raise UserError(f"--output: {path}: {NO_TORCHSCRIPT}")
    raise UserError(
        f"--output: {path} must end in {ONNX}, in {TORCH_EXPORT} for torch.export or in {OPENVINO} "
        "for OpenVINO; --format detectron2 makes a folder"
    )


def _to_torch_export(
    traceable: nn.Module, image: np.ndarray, contract: Dict[str, str], is_fixed: bool
) -> Tuple[bytes]:
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
    return (buffer.getvalue(),)


def _to_onnx(
    traceable: nn.Module, image: np.ndarray, contract: Dict[str, str], is_fixed: bool
) -> Tuple[bytes]:
    import onnx

    with torch.no_grad():
        num_outputs = len(traceable(torch.as_tensor(image)))
    names = list(OUTPUTS[:num_outputs])
    free = {} if is_fixed else {"image": {0: "height", 1: "width"}}
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
            dynamic_axes={**free, **{name: {0: "detections"} for name in names}},
        )
    model = onnx.load_from_string(buffer.getvalue())
    for key, value in contract.items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model)
    return (model.SerializeToString(),)


def _to_openvino(
    traceable: nn.Module, image: np.ndarray, contract: Dict[str, str], is_fixed: bool
) -> Tuple[bytes, bytes]:
    return to_ir(*_to_onnx(traceable, image, contract, is_fixed))


class _quiet(warnings.catch_warnings):
    """Hides that tracing is deprecated, and that it fixes what is in fact the same every time."""

    def __enter__(self):
        super().__enter__()
        warnings.simplefilter("ignore")


_FORMATS = (
    Format((ONNX,), make_traceable, _to_onnx, run_onnx, import_onnx, can_fix_size=True),
    Format(
        (OPENVINO, ".bin"),
        make_traceable,
        _to_openvino,
        run_openvino,
        import_openvino,
        can_fix_size=True,
    ),
    Format((TORCH_EXPORT,), make_dataflow, _to_torch_export, run_torch_export),
)
