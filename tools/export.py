#!/usr/bin/env python
"""Export a trained detector to other formats, and compare the exported file with it.

tools/export.py --run output/frcnn_rsb_sample --output model.onnx
    Faster or Mask R-CNN or RetinaNet to ONNX, with the best weights of a training
tools/export.py --config-file configs/mask_rcnn_rsb_1x.yaml --weights zoo://mask_rcnn_rsb_1x \\
        --output model.pt2 --images a.jpg b.jpg
    with torch.export, for torch and torchvision
tools/export.py --run output/frcnn_rsb_sample --output model.xml --format openvino
    OpenVINO's model.xml and model.bin; --image-size 640x853 fixes the size of these or of ONNX
tools/export.py --run output/frcnn_rsb_sample --output package --format detectron2
    a folder for plain Detectron2 and libraries built on it; see docs/ecosystem.md

The output is compared with the model on the images, and is not written if they differ. See
docs/deployment.md for the use of a file. The exit status is 0, or 2 if nothing was written.
"""

import argparse
import os
import sys
from os.path import expanduser

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from _program import make_parser, report_user_errors

from rsb_d2 import UserError
from rsb_d2.addons.export.export import (
    Exported,
    check_output,
    comparison_images,
    export_detector,
    read_size,
)
from rsb_d2.addons.export.files import NO_TORCHSCRIPT
from rsb_d2.addons.export.package import Package, check_folder, export_package
from rsb_d2.predictor import load_detector, load_predict_config

FORMATS = ("detectron2", "openvino")


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--run", type=expanduser, default="", help="OUTPUT_DIR of a training")
    parser.add_argument(
        "--config-file", type=expanduser, default="", help="a YAML file, or a name in the model zoo"
    )
    parser.add_argument("--weights", type=expanduser, default="", help="a file, zoo://NAME, ...")
    parser.add_argument(
        "--output",
        type=expanduser,
        required=True,
        help="NAME.onnx, NAME.xml or NAME.pt2; with --format detectron2, a folder",
    )
    parser.add_argument(
        "--format",
        default="",
        choices=(*FORMATS, "torchscript"),
        metavar=f"{{{','.join(FORMATS)}}}",
        help="openvino: NAME.xml, .bin",
    )
    parser.add_argument(
        "--image-size",
        default="",
        metavar="HxW",
        help="fixed size of an .onnx or .xml file (default: any size)",
    )
    parser.add_argument(
        "--images",
        type=expanduser,
        nargs="+",
        default=[],
        help="images to compare on (default: first images of the test data)",
    )
    parser.add_argument(
        "--threshold", type=float, help="minimum score (default: the config's, usually 0.05)"
    )
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE", help="config overrides"
    )
    return parser.parse_args()


@report_user_errors
def main() -> int:
    args = parse_args()
    if args.format == "torchscript":
        raise UserError(f"--format torchscript: {NO_TORCHSCRIPT}")
    size = read_size(args.image_size)
    is_package = args.format == "detectron2"
    if is_package:
        if size:
            raise UserError("--image-size: Detectron2 resizes images; .onnx and .xml can fix it")
        check_folder(args.output)
    else:
        if args.format == "openvino" and not args.output.endswith(".xml"):
            raise UserError(f"--output: {args.output} must end in .xml with --format openvino")
        check_output(args.output, size)
    cfg = load_predict_config(
        args.config_file, args.weights, args.run, args.opts, "cpu", args.threshold
    )
    images = comparison_images(cfg, args.images)
    model, classes = load_detector(cfg)
    if is_package:
        print(_package_summary(export_package(cfg, model, classes, args.output, images)))
    else:
        print(_summary(export_detector(cfg, model, classes, args.output, images, size)))
    return 0


def _summary(exported: Exported) -> str:
    difference = exported.difference
    sizes = ", ".join(f"{width} x {height}" for height, width in exported.sizes)
    contract = "\n".join(f"  {key}: {value}" for key, value in exported.contract.items())
    files = "\n".join(f"{file}: {os.path.getsize(file) / 1e6:.1f} MB" for file in exported.files)
    return (
        f"{files}\n{contract}\n"
        f"compared with the model on images of {sizes}: the same {difference.detections} "
        f"detections, boxes within {difference.box:.1g} pixels, scores within "
        f"{difference.score:.1g}"
        + (f", masks within {difference.mask:.1g}" if "masks" in exported.contract else "")
    )


def _package_summary(package: Package) -> str:
    difference = package.difference
    return (
        f"{package.folder}: config.yaml, model_final.pth and classes.json for Detectron2 alone\n"
        f"compared with the model on {package.num_images} images: the same "
        f"{difference.detections} detections, boxes within {difference.box:.1g} pixels, scores "
        f"within {difference.score:.1g}"
        + (f", on {package.num_rounded} but for rounding" if package.num_rounded else "")
        + "\n\n"
        + "\n".join(package.usage)
    )


if __name__ == "__main__":
    sys.exit(main())
