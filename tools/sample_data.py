#!/usr/bin/env python
"""Make sample data to train on: images of shapes, and single objects for pretraining.

tools/sample_data.py                   both, where configs/frcnn_rsb_sample.yaml and
                                       configs/pretrain/resnet50_rsb_sample.yaml look for them
tools/sample_data.py pictures --folder my_shapes --num-train 100 --num-val 20

`pictures` writes 1,600 training and 200 validation images with COCO-format annotations to
datasets/rsb_sample, `objects` 4,800 and 400 images, one folder per class, to
datasets/rsb_sample_objects. A folder that is complete is left as it is.

The exit status is 0, or 2 for a mistake on the command line or a folder that cannot be written.
"""

import argparse
import os
import sys
from os.path import expanduser

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from _program import make_parser, report_user_errors

from rsb_d2.addons.workbench.sample import make_sample_data, make_sample_objects

KINDS = {
    "pictures": (make_sample_data, "datasets/rsb_sample"),
    "objects": (make_sample_objects, "datasets/rsb_sample_objects"),
}


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("kind", nargs="?", choices=KINDS, help="what to make (default: both)")
    options = parser.add_argument_group("options of one kind")
    options.add_argument("--folder", type=expanduser, help="folder to write to")
    options.add_argument("--num-train", type=int, help="number of training images")
    options.add_argument("--num-val", type=int, help="number of validation images")
    options.add_argument(
        "--image-size", type=int, help="longer side of the images in pixels (160; objects: 80)"
    )
    options.add_argument("--seed", type=int, help="another seed gives other images")
    args = parser.parse_args()
    if args.kind is None and any(v is not None for v in vars(args).values()):
        parser.error("options need a kind: write pictures or objects before them")
    return args


@report_user_errors
def main() -> int:
    args = parse_args()
    given = {k: v for k, v in vars(args).items() if v is not None and k != "kind"}
    for kind in [args.kind] if args.kind else KINDS:
        make, default = KINDS[kind]
        folder = given.pop("folder", default)
        make(folder, **given)
        print(f"{kind}: {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
