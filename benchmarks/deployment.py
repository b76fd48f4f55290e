"""One detector on a CPU in PyTorch, optimize_for_inference, onnxruntime and OpenVINO.

Faster R-CNN with ResNet-50 and FPN and seeded weights in float32, one image at a time; with --run a
trained detector, also in bfloat16 and int8, with the AP of each. The files are written as
tools/export.py does. All in float32 must give PyTorch's detections.
"""

import argparse
import os
import tempfile
from typing import Dict, List, NamedTuple, Tuple

import numpy as np
import torch
from detectron2.config import CfgNode
from PIL import Image

from rsb_d2.addons.accelerate import optimize_for_inference
from rsb_d2.addons.export.comparison import Detections
from rsb_d2.addons.export.export import comparison_images, input_contract
from rsb_d2.addons.export.files import (
    ONNX,
    OPENVINO,
    Detector,
    format_of,
    import_openvino,
    run_model,
    run_openvino_model,
)
from rsb_d2.addons.export.quantization import (
    Int8,
    calibration_images,
    check_test_data,
    measure_ap,
    quantize,
)
from rsb_d2.addons.export.traceable import make_traceable
from rsb_d2.data.class_names import ClassNames
from rsb_d2.errors import UserError
from rsb_d2.memory import reuse_freed_memory
from rsb_d2.predictor import load_detector, load_predict_config

from .harness import Prepared, image_size, positive
from .inference import same_detections
from .models import build_ours, make_images, our_config

_FORMATS = {"onnxruntime": ONNX, "OpenVINO": OPENVINO}
_BFLOAT16, _INT8 = "OpenVINO, bfloat16", "OpenVINO, int8"


class _Result(NamedTuple):
    found: List[Detections]
    aps: Dict[str, float]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image-size", default="640x853", type=image_size, help="HxW (640x853)")
    parser.add_argument("--threads", type=positive, help="of each (as many as torch's)")
    parser.add_argument(
        "--reuse-memory", action="store_true", help="call rsb_d2.memory.reuse_freed_memory()"
    )
    parser.add_argument("--fixed", action="store_true", help="files for images of that size only")
    parser.add_argument(
        "--run", default="", type=os.path.expanduser, help="output folder of a training"
    )
    parser.add_argument(
        "--calibrate", default="", type=os.path.expanduser, help="images for int8, with --run"
    )


def contenders(args: argparse.Namespace) -> List[str]:
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.reuse_memory and not reuse_freed_memory():
        raise UserError("--reuse-memory has an effect only with glibc, which is not used here")
    if args.run and args.fixed:
        raise UserError("--run measures the AP on images of many sizes, which excludes --fixed")
    if args.calibrate and not args.run:
        raise UserError("--calibrate needs --run: int8 is measured by its AP")
    trained = [_BFLOAT16, *([_INT8] if args.calibrate else [])] if args.run else []
    return ["PyTorch", "optimized", *_FORMATS, *trained]


def prepare(args: argparse.Namespace, name: str) -> Prepared:
    cfg, model, image = _load(args)
    model.requires_grad_(False)
    if name in ("PyTorch", "optimized"):
        detect = run_model(optimize_for_inference(model) if name == "optimized" else model)
    else:
        detect = _export(cfg, model, name, image, args)
    aps = {}
    if args.run:
        aps = measure_ap(cfg, check_test_data(cfg), detect, _as_it_is)
    return Prepared({"an image": lambda: detect(image)}, lambda: _Result([detect(image)], aps))


def _load(args: argparse.Namespace) -> Tuple[CfgNode, torch.nn.Module, np.ndarray]:
    if not args.run:
        (record,) = make_images(args.image_size, 1)
        image = record["image"].permute(1, 2, 0).contiguous().numpy()
        return our_config(), build_ours(), image
    cfg = load_predict_config(run=args.run, device="cpu")
    image = Image.fromarray(comparison_images(cfg, [])[0]).resize(args.image_size[::-1])
    return cfg, load_detector(cfg)[0], np.array(image)


def _as_it_is(image: np.ndarray) -> Tuple[np.ndarray, Tuple[int, int]]:
    return image, image.shape[:2]


def _export(
    cfg: CfgNode, model: torch.nn.Module, name: str, image: np.ndarray, args: argparse.Namespace
) -> Detector:
    kind = format_of(_FORMATS.get(name, OPENVINO))
    size = args.image_size if args.fixed else None
    contract = input_contract(cfg, ClassNames((), ()), size)
    contents = kind.write(make_traceable(model, size), image, contract, args.fixed)
    threads = torch.get_num_threads()
    if name == _INT8:
        int8 = Int8(calibration_images(args.calibrate), max_ap_drop=100)
        quantized = quantize(cfg, int8, *contents, _as_it_is)
        contents = quantized.xml, quantized.weights
    if name in (_BFLOAT16, _INT8):
        read = import_openvino().Core().read_model(*contents)
        return run_openvino_model(read, threads, "bf16" if name == _BFLOAT16 else "f32")
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, f"model{ending}") for ending in kind.endings]
        for path, content in zip(paths, contents):
            with open(path, "wb") as f:
                f.write(content)
        return kind.load(*paths, threads=threads)


def check(args: argparse.Namespace, results: Dict[str, _Result]) -> str:
    in_float32 = {n: r.found for n, r in results.items() if n not in (_BFLOAT16, _INT8)}
    aps = [
        f"{task} AP of {name} {ap:.2f}"
        for name, result in results.items()
        for task, ap in result.aps.items()
    ]
    return "; ".join([same_detections(in_float32), *aps])
