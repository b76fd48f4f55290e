"""Export a trained detector to ONNX, OpenVINO, torch.export or Detectron2.

rsb-d2 export --run output/frcnn_rsb_sample --output model.onnx
    Faster or Mask R-CNN or RetinaNet to ONNX, with the best weights of a training
rsb-d2 export --config-file mask_rcnn_rsb_1x --weights zoo://mask_rcnn_rsb_1x \\
        --output model.pt2 --images a.jpg b.jpg
    with torch.export, for torch and torchvision
rsb-d2 export --run output/frcnn_rsb_sample --output model.xml --format openvino
    OpenVINO's model.xml and model.bin; --image-size 640x853 fixes the size of any of these files
rsb-d2 export --run output/frcnn_rsb_sample --output model.xml --format openvino --int8 \\
        --calibrate datasets/rsb_sample/train
    in int8, calibrated on the images of a folder, or on those that a config trains on
rsb-d2 export --run output/frcnn_rsb_sample --output package --format detectron2
    a folder for plain Detectron2 and libraries built on it; see docs/ecosystem.md

The output is compared with the model on the images, and is not written if they differ, or if the AP
on the test data falls by more than --max-ap-drop in int8. See docs/deployment.md for the use of a
file. The exit status is 0, or 2 if nothing was written.
"""

import argparse
import logging
import os
from os.path import expanduser
from typing import TYPE_CHECKING

from .arguments import add_model_arguments

if TYPE_CHECKING:
    from ..export.export import Exported
    from ..export.package import Package
    from ..export.quantization import Quantized


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument(
        "--output",
        type=expanduser,
        required=True,
        metavar="NAME",
        help="NAME.onnx, NAME.xml or NAME.pt2; with --format detectron2, a folder",
    )
    parser.add_argument(
        "--format",
        default="",
        choices=("detectron2", "openvino", "torchscript"),
        metavar="{detectron2,openvino}",
        help="openvino: NAME.xml, .bin",
    )
    parser.add_argument(
        "--image-size",
        default="",
        metavar="HxW",
        help="fixed size of the images (default: any size)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="number of images of a batch; needs --image-size (default: one image, no batch)",
    )
    parser.add_argument(
        "--images",
        type=expanduser,
        nargs="+",
        default=[],
        metavar="FILE",
        help="images to compare on (default: first images of the test data)",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="S",
        help="minimum score (default: the config's, usually 0.05)",
    )
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE", help="config overrides"
    )
    int8 = parser.add_argument_group("int8, with --format openvino")
    int8.add_argument("--int8", action="store_true", help="quantize the layers; needs nncf")
    int8.add_argument(
        "--calibrate",
        type=expanduser,
        default="",
        metavar="FOLDER_OR_CONFIG",
        help="32 images or more; of a config (.yaml), those of DATASETS.TRAIN",
    )
    int8.add_argument(
        "--max-ap-drop",
        type=float,
        default=0.5,
        metavar="POINTS",
        help="a file that loses more AP on DATASETS.TEST is not written (default: 0.5)",
    )
    int8.add_argument(
        "--keep-float",
        nargs="+",
        default=[],
        metavar="LAYER",
        help="layers that stay in float32, or beginnings of their names",
    )


def run(args: argparse.Namespace) -> int:
    import rsb_d2

    rsb_d2.register_all()
    from ...errors import UserError
    from ...predictor import load_detector, load_predict_config
    from ..export.export import (
        check_batch_size,
        check_output,
        comparison_images,
        export_detector,
        read_size,
    )
    from ..export.files import NO_TORCHSCRIPT
    from ..export.package import check_folder, export_package
    from ..export.quantization import Int8, calibration_images, check_test_data

    if args.format == "torchscript":
        raise UserError(f"--format torchscript: {NO_TORCHSCRIPT}")
    _check_int8_options(args)
    size = read_size(args.image_size)
    check_batch_size(args.batch_size, args.output, size, args.int8 or args.format == "detectron2")
    is_package = args.format == "detectron2"
    if is_package:
        if size:
            raise UserError("--image-size: Detectron2 resizes images; only files have a fixed size")
        check_folder(args.output)
    else:
        if args.format == "openvino" and not args.output.endswith(".xml"):
            raise UserError(f"--output: {args.output} must end in .xml with --format openvino")
        check_output(args.output)
    cfg = load_predict_config(
        args.config_file, args.weights, args.run, args.opts, "cpu", args.threshold
    )
    int8 = None
    if args.int8:
        check_test_data(cfg)
        int8 = Int8(calibration_images(args.calibrate), args.max_ap_drop, args.keep_float)
    images = comparison_images(cfg, args.images)
    model, classes = load_detector(cfg)
    if is_package:
        print(_package_summary(export_package(cfg, model, classes, args.output, images)))
    else:
        sizes = size, int8, args.batch_size
        print(_summary(export_detector(cfg, model, classes, args.output, images, *sizes)))
    return 0


def _check_int8_options(args: argparse.Namespace) -> None:
    from ...errors import UserError
    from ..export.quantization import import_nncf

    if not args.int8:
        if args.calibrate or args.keep_float:
            raise UserError("--calibrate and --keep-float have an effect only with --int8")
        return
    if args.format != "openvino":
        raise UserError("--int8 needs --format openvino: other formats are written in float32")
    if not args.calibrate:
        raise UserError("--int8 needs images: --calibrate FOLDER, or a config that trains on them")
    if not 0 <= args.max_ap_drop <= 100:
        raise UserError(f"--max-ap-drop is {args.max_ap_drop}; write points of AP, such as 0.5")
    import_nncf().set_log_level(logging.WARNING)


def _summary(exported: "Exported") -> str:
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
        + _int8_summary(exported.quantized)
    )


def _int8_summary(quantized: "Quantized | None") -> str:
    if quantized is None:
        return ""
    aps = ", ".join(
        f"{task} AP {before:.2f} in float32, {quantized.after[task]:.2f} in int8"
        for task, before in quantized.before.items()
    )
    return f", before its {len(quantized.layers)} layers were quantized\n{quantized.dataset}: {aps}"


def _package_summary(package: "Package") -> str:
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
