"""Make sample data: images of shapes, and single objects for pretraining.

rsb-d2 sample-data
    both, where the configs frcnn_rsb_sample and pretrain/resnet50_rsb_sample look for them
rsb-d2 sample-data pictures --folder my_shapes --num-train 100 --num-val 20

`pictures` writes 1,600 training and 200 validation images with COCO-format annotations to
datasets/rsb_sample, `objects` 4,800 and 400 images, one folder per class, to
datasets/rsb_sample_objects. A folder that is complete is left as it is.

The exit status is 0, or 2 for a mistake on the command line or a folder that cannot be written.
"""

import argparse
from os.path import expanduser

# The folders that the configs of the sample name.
KINDS = {"pictures": "datasets/rsb_sample", "objects": "datasets/rsb_sample_objects"}
OPTIONS = ("folder", "num_train", "num_val", "image_size", "seed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", nargs="?", choices=KINDS, help="the data to make (default: both)")
    options = parser.add_argument_group("options of one kind")
    options.add_argument("--folder", type=expanduser, help="folder to write to")
    options.add_argument("--num-train", type=int, help="number of training images")
    options.add_argument("--num-val", type=int, help="number of validation images")
    options.add_argument(
        "--image-size", type=int, help="longer side of the images in pixels (160; objects: 80)"
    )
    options.add_argument("--seed", type=int, help="another seed gives other images")


def run(args: argparse.Namespace) -> int:
    from ...errors import UserError
    from ..workbench.sample import make_sample_data, make_sample_objects

    given = {name: vars(args)[name] for name in OPTIONS if vars(args)[name] is not None}
    if given and args.kind is None:
        raise UserError("options need a kind: write pictures or objects before them")
    make = {"pictures": make_sample_data, "objects": make_sample_objects}
    for kind in [args.kind] if args.kind else KINDS:
        folder = given.pop("folder", KINDS[kind])
        make[kind](folder, **given)
        print(f"{kind}: {folder}")
    return 0
