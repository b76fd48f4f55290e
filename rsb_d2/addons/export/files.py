"""The kinds of files that a detector is exported to: writing them, and running them on an image."""

import copy
import importlib
import io
import json
import os
import tempfile
import warnings
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Callable, Dict, List, Sequence, Tuple

import numpy as np
import torch
from detectron2.modeling import GeneralizedRCNN
from torch import nn

from ...errors import UserError
from .comparison import Detections
from .traceable import OUTPUTS

Detector = Callable[[np.ndarray], Detections]

# RoiAlign with the half-pixel offset of ROIAlignV2 is of 16.
_OPSET = 17

ONNX, OPENVINO, TORCH_EXPORT = ".onnx", ".xml", ".pt2"

NO_TORCHSCRIPT = (
    "TorchScript is deprecated by torch and no longer written; write a file that ends in "
    f"{TORCH_EXPORT} for torch.export or in {ONNX}"
)


# ---- running ----


def import_packages(what: str, *names: str) -> List[ModuleType]:
    """Import packages that need not be installed.

    Args:
        what (str): what needs how many of them, for the error.
        names (str): of the packages.

    Raises:
        UserError: if one is not installed.
    """
    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as e:
        raise UserError(f"{what}: pip install {' '.join(names)} ({e})") from e


def import_onnx() -> List[ModuleType]:
    """Import ``onnx`` and ``onnxruntime``; see :func:`import_packages`."""
    return import_packages("ONNX needs two packages more", "onnx", "onnxruntime")


def import_openvino() -> ModuleType:
    """Import ``openvino``, and check for ``onnx``, by whose format a detector gets there."""
    what = "OpenVINO's format needs two packages more"
    return import_packages(what, "openvino", "onnx")[0]


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
    inputs = session.get_inputs()
    names = [each.name for each in inputs]
    return _run_inputs(lambda *values: session.run(None, dict(zip(names, values))), inputs[0].shape)


def _run_inputs(run: Callable[..., Sequence[np.ndarray]], shape: Sequence[int]) -> Detector:
    """From the function of a file, whose first input has a shape, to one of an image.

    A batch consists of copies of the image, and the detections are those of its last one.
    """
    if len(shape) == 3:
        return lambda image: Detections(*run(image))

    def run_batch(image: np.ndarray) -> Detections:
        images = np.stack([image.transpose(2, 0, 1)] * shape[0])
        outputs = run(images, np.array([image.shape[:2]] * shape[0]))
        boxes, scores, classes, number, _, *masks = (output[-1] for output in outputs)
        return Detections(*(output[:number] for output in (boxes, scores, classes, *masks)))

    return run_batch


def run_torch_export(path: str) -> Detector:
    """Load a file of ``torch.export``; as :func:`run_onnx`."""
    with open(path, "rb") as f:  # by its name torch would ask for the ending .pt2
        function = torch.export.load(f).module()

    def run(image: np.ndarray) -> Detections:
        with torch.no_grad():
            outputs = function(torch.as_tensor(image))[: len(OUTPUTS)]
        return Detections(*(output.numpy() for output in outputs))

    return run


def run_model(model: nn.Module) -> Detector:
    """Run a detector of Detectron2 as it is; as :func:`run_onnx`."""

    def run(image: np.ndarray) -> Detections:
        batch = [{"image": torch.as_tensor(image).permute(2, 0, 1)}]
        with torch.no_grad():
            if not isinstance(model, GeneralizedRCNN):
                return Detections.of(model(batch)[0]["instances"])
            # The masks before they are pasted into the image.
            instances = model.inference(batch, do_postprocess=False)[0]
        instances = instances[instances.pred_boxes.nonempty()]
        has_masks = instances.has("pred_masks")
        return Detections.of(instances, instances.pred_masks[:, 0] if has_masks else None)

    return run


# ---- OpenVINO ----


def save_ir(model: Any) -> Tuple[bytes, bytes]:
    """The contents of the ``.xml`` and the ``.bin`` file of an ``openvino.Model``.

    Its weights stay as they are.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.xml")
        import_openvino().save_model(model, path, compress_to_fp16=False)
        with open(path, "rb") as xml, open(path[: -len("xml")] + "bin", "rb") as weights:
            return xml.read(), weights.read()


def run_openvino(
    path: str, weights: str = "", threads: int = 0, precision: str = "f32"
) -> Detector:
    """Load an IR or an ONNX file into OpenVINO, on the CPU.

    Args:
        path (str): of the ``.xml`` or ``.onnx`` file.
        weights (str): of an IR's weights, if they are not in the ``.bin`` file next to it.
        threads (int): to compute with; as many as OpenVINO thinks best by default.
        precision (str): ``"f32"``, or ``"bf16"`` for bfloat16 where the processor has it.

    Returns:
        callable: from a uint8 image (H, W, 3) to its :class:`Detections`.
    """
    core = import_openvino().Core()
    if weights:
        with open(path, "rb") as xml, open(weights, "rb") as f:
            model = core.read_model(xml.read(), f.read())
    else:
        model = core.read_model(path)
    return run_openvino_model(model, threads, precision)


def run_openvino_model(model: Any, threads: int = 0, precision: str = "f32") -> Detector:
    """Compile an ``openvino.Model`` of a detector; as :func:`run_openvino`."""
    core = import_openvino().Core()
    # By default OpenVINO computes in bfloat16 if the processor does.
    options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads}
    compiled = core.compile_model(model, "CPU", options)
    request = compiled.create_infer_request()

    def run(*inputs: np.ndarray) -> List[np.ndarray]:
        request.infer([np.ascontiguousarray(x) for x in inputs])
        # Copied, as the next image's are written to the same memory.
        return [o.data.copy() for o in request.output_tensors]

    return _run_inputs(run, [d.get_max_length() for d in compiled.inputs[0].partial_shape])


# ---- writing ----


@dataclass
class Format:
    """One kind of file.

    Args:
        endings (tuple[str, ...]): of the files; that of the user's name first.
        write (callable): from the module of ``make_traceable``, a uint8 image (H, W, 3), the
            metadata and whether all images have the size of that one, to the contents of the files.
        load (callable): from the paths of the files to a :data:`Detector`.
        check (callable): raises a :class:`UserError` if a package is missing.
    """

    endings: Tuple[str, ...]
    write: Callable[[nn.Module, np.ndarray, Dict[str, str], bool], Tuple[bytes, ...]]
    load: Callable[..., Detector]
    check: Callable[[], object] = lambda: None


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
    side = torch.export.Dim.STATIC if is_fixed else torch.export.Dim.AUTO
    buffer = io.BytesIO()
    with _quiet(), torch.no_grad():
        program = torch.export.export(
            traceable,
            (torch.as_tensor(image),),
            dynamic_shapes={"image": {0: side, 1: side}},
            strict=False,
        )
        torch.export.save(program, buffer, extra_files={"metadata.json": json.dumps(contract)})
    return (buffer.getvalue(),)


def _to_onnx(
    traceable: nn.Module, image: np.ndarray, contract: Dict[str, str], is_fixed: bool
) -> Tuple[bytes]:
    import onnx

    inputs, buffer = traceable.inputs(torch.as_tensor(image)), io.BytesIO()
    with _quiet(), torch.no_grad():
        names = list(traceable.output_names[: len(traceable(*inputs))])
        free = {} if is_fixed else {"image": {0: "height", 1: "width"}}
        if len(inputs) == 1:
            free.update({name: {0: "detections"} for name in names})
        # By tracing: the exporter by torch.export needs one package more.
        torch.onnx.export(
            traceable,
            inputs,
            buffer,
            dynamo=False,
            opset_version=_OPSET,
            input_names=list(traceable.input_names),
            output_names=names,
            dynamic_axes=free,
        )
    model = onnx.load_from_string(buffer.getvalue())
    for key, value in contract.items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model)
    return (model.SerializeToString(),)


def _to_openvino(
    traceable: nn.Module, image: np.ndarray, contract: Dict[str, str], is_fixed: bool
) -> Tuple[bytes, bytes]:
    (graph,) = _to_onnx(traceable, image, contract, is_fixed)
    return save_ir(import_openvino().Core().read_model(graph))


class _quiet(warnings.catch_warnings):
    """Hide the warnings that tracing is deprecated, and that it fixes values that never change."""

    def __enter__(self):
        super().__enter__()
        warnings.simplefilter("ignore")


_FORMATS = (
    Format((ONNX,), _to_onnx, run_onnx, import_onnx),
    Format((OPENVINO, ".bin"), _to_openvino, run_openvino, import_openvino),
    Format((TORCH_EXPORT,), _to_torch_export, run_torch_export),
)
