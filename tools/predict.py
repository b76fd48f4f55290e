#!/usr/bin/env python
"""Detect objects in images: annotated pictures, a COCO results file and a table.

tools/predict.py --run output/frcnn_rsb_sample datasets/rsb_sample/val
    with the best weights of a training, or else its last ones
tools/predict.py --config-file configs/frcnn_rsb_1x.yaml --weights zoo://frcnn_rsb_1x a.jpg b.jpg
tools/predict.py --run output/mine 'photos/**/*.jpg' --threshold 0.3 --batch 8 --dtype bfloat16

The exit status is 0, or 1 if an image could not be read (it is named and skipped), or 2 for a
mistake on the command line or in the files that it names.
"""

import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from _program import make_parser, tells_mistakes

from rsb_d2.predict.files import (
    find_images,
    format_table,
    predict_files,
)
from rsb_d2.predict.predictor import (
    DTYPES,
    Predictor,
    load_predict_config,
)


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("images", nargs="+", help="images, folders and globs")
    parser.add_argument("--run", default="", help="OUTPUT_DIR of a training")
    parser.add_argument("--config-file", default="", help="a YAML file, or a name in the model zoo")
    parser.add_argument("--weights", default="", help="a file, zoo://NAME, ...")
    parser.add_argument("--output", default="", help="folder; RUN/predictions or predictions")
    parser.add_argument("--threshold", type=float, default=0.5, help="lowest score (0.5)")
    parser.add_argument("--batch", type=int, default=1, help="images at a time (1)")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--device", default="", help="cpu, cuda, cuda:1 (the config's)")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="overrides")
    return parser.parse_args()


@tells_mistakes
def main() -> int:
    args = parse_args()
    output = args.output or os.path.join(args.run, "predictions")
    find_images(args.images, output)  # before the model is loaded
    cfg = load_predict_config(
        args.config_file, args.weights, args.run, args.opts, args.device, args.threshold
    )
    predictor = Predictor.from_config(cfg, args.dtype)
    summary = predict_files(predictor, args.images, output, args.batch)
    print(format_table(summary))
    print(f"pictures: {os.path.join(output, 'pictures')}")
    print(f"results:  {summary.results_file}, COCO format; its ids are those of images.json")
    return 1 if summary.skipped else 0


if __name__ == "__main__":
    sys.exit(main())
