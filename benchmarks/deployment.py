"""One detector on a CPU in PyTorch, optimize_for_inference, onnxruntime and OpenVINO.

Faster R-CNN with ResNet-50 and FPN and seeded weights in float32, one image at a time. The files
are written as tools/export.py does. All must give PyTorch's detections.
"""

import argparse
import os
import tempfile
from typing import Any, Dict, List

import torch

from rsb_d2.addons.accelerate import optimize_for_inference
from rsb_d2.addons.export.export import input_contract
from rsb_d2.addons.export.files import ONNX, OPENVINO, format_of, run_model
from rsb_d2.addons.export.traceable import make_traceable
from rsb_d2.data.class_names import ClassNames
from rsb_d2.errors import UserError
from rsb_d2.memory import reuse_freed_memory

from .harness import Prepared, image_size, positive
from .inference import same_detections
from .models import build_ours, make_images, our_config

_FORMATS = {"onnxruntime": ONNX, "OpenVINO": OPENVINO}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image-size", default="640x853", type=image_size, help="HxW (640x853)")
    parser.add_argument("--threads", type=positive, help="of each (as many as torch's)")
    parser.add_argument(
        "--reuse-memory", action="store_true", help="call rsb_d2.memory.reuse_freed_memory()"
    )
    parser.add_argument("--fixed", action="store_true", help="files for images of that size only")


def contenders(args: argparse.Namespace) -> List[str]:
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.reuse_memory and not reuse_freed_memory():
        raise UserError("--reuse-memory has an effect only with glibc, which is not used here")
    return ["PyTorch", "optimized", *_FORMATS]


def prepare(args: argparse.Namespace, name: str) -> Prepared:
    (record,) = make_images(args.image_size, 1)
    image = record["image"].permute(1, 2, 0).contiguous().numpy()
    model = build_ours().requires_grad_(False)
    if name in _FORMATS:
        detect = _export(model, format_of(_FORMATS[name]), image, args)
    else:
        detect = run_model(optimize_for_inference(model) if name == "optimized" else model)
    return Prepared({"an image": lambda: detect(image)}, lambda: [detect(image)])


def _export(model: torch.nn.Module, kind: Any, image: Any, args: argparse.Namespace) -> Any:
    size = args.image_size if args.fixed else None
    contract = input_contract(our_config(), ClassNames((), ()), size)
    contents = kind.write(make_traceable(model, size), image, contract, args.fixed)
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, f"model{ending}") for ending in kind.endings]
        for path, content in zip(paths, contents):
            with open(path, "wb") as f:
                f.write(content)
        return kind.load(*paths, threads=torch.get_num_threads())


def check(args: argparse.Namespace, results: Dict[str, Any]) -> str:
    return same_detections(results)
