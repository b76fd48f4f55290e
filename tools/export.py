#!/usr/bin/env python
"""Write a trained detector to one file that runs without Detectron2, and compare the two.

tools/export.py --run output/frcnn_rsb_sample --output model.onnx
    Faster or Mask R-CNN or RetinaNet to ONNX, with the best weights of a training
tools/export.py --config-file configs/mask_rcnn_rsb_1x.yaml --weights zoo://mask_rcnn_rsb_1x \\
        --output model.pt2 --images a.jpg b.jpg
    by torch.export, for torch and torchvision; model.ts: TorchScript, which torch gives up

The file is compared with the model on the images, and is not written if they differ.
docs/deployment.md says how to use it. The exit status is 0, or 2 if nothing was written.
"""

import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from _program import make_parser, tells_mistakes

from rsb_d2.export.export import Exported, check_output, export_detector
from rsb_d2.export.images import comparison_images
from rsb_d2.predict.predictor import load_detector, load_predict_config


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--run", default="", help="OUTPUT_DIR of a training")
    parser.add_argument("--config-file", default="", help="a YAML file, or a name in the model zoo")
    parser.add_argument("--weights", default="", help="a file, zoo://NAME, ...")
    parser.add_argument("--output", required=True, help="NAME.onnx, NAME.pt2 or NAME.ts")
    parser.add_argument(
        "--images", nargs="+", default=[], help="to compare on; default: the first of the test data"
    )
    parser.add_argument("--threshold", type=float, help="lowest score (the config's: mostly 0.05)")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="overrides")
    return parser.parse_args()


@tells_mistakes
def main() -> int:
    args = parse_args()
    check_output(args.output)
    cfg = load_predict_config(
        args.config_file, args.weights, args.run, args.opts, "cpu", args.threshold
    )
    images = comparison_images(cfg, args.images)
    model, classes = load_detector(cfg)
    exported = export_detector(cfg, model, classes, args.output, images)
    print(_summary(exported))
    return 0


def _summary(exported: Exported) -> str:
    difference = exported.difference
    sizes = ", ".join(f"{width} x {height}" for height, width in exported.sizes)
    contract = "\n".join(f"  {key}: {value}" for key, value in exported.contract.items())
    return (
        f"{exported.path}: {os.path.getsize(exported.path) / 1e6:.1f} MB\n{contract}\n"
        f"compared with the model on images of {sizes}: the same {difference.detections} "
        f"detections, boxes within {difference.box:.1g} pixels, scores within "
        f"{difference.score:.1g}"
        + (f", masks within {difference.mask:.1g}" if "masks" in exported.contract else "")
    )


if __name__ == "__main__":
    sys.exit(main())
