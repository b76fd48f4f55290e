"""Convert YOLO, Pascal VOC, LabelMe and VIA data sets to COCO, and any of them to YOLO.

rsb-d2 convert my_yolo/data.yaml --output my_coco
rsb-d2 convert my_voc --output my_coco --split 0.8 --seed 1
rsb-d2 convert my_labelme --output my_coco --split 0.8 --classes cat dog
rsb-d2 convert via_project.json --output my_coco --attribute species
rsb-d2 convert my_cvat_export --output my_coco --split 0.8
rsb-d2 convert train.json val.json --images train val --to yolo --output my_yolo

COCO files are written to OUTPUT/train.json, val.json and test.json and refer to the images in their
current place; for YOLO the images are copied or linked. Everything that is left out is counted. If
there is an error in a label, the exit status is 2 and nothing is written.
"""

import argparse
import os
import shlex
from collections import Counter
from os.path import expanduser
from typing import TYPE_CHECKING

from ...errors import count, first, printable

if TYPE_CHECKING:
    from ..workbench.convert import Conversion


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs",
        type=expanduser,
        nargs="+",
        help="a folder or file; of COCO, also one per split",
    )
    parser.add_argument(
        "--output",
        type=expanduser,
        required=True,
        metavar="FOLDER",
        help="folder to write; must not exist",
    )
    parser.add_argument(
        "--from",
        dest="source",
        default="",
        choices=("yolo", "voc", "labelme", "via", "coco"),
        help="input format (detected)",
    )
    parser.add_argument("--to", default="coco", choices=("coco", "yolo"), help="output format")
    parser.add_argument(
        "--images", type=expanduser, nargs="+", default=[], metavar="FOLDER", help="image folders"
    )
    parser.add_argument(
        "--classes",
        nargs="+",
        default=[],
        metavar="NAME",
        help="class names in order (default: sorted)",
    )
    parser.add_argument(
        "--attribute", default="", metavar="NAME", help="of VIA's regions, which is their class"
    )
    parser.add_argument(
        "--split", type=float, metavar="F", help="fraction of training images, such as 0.8"
    )
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="seed of the split (0)")
    parser.add_argument("--clip", action="store_true", help="clip objects to the image")
    parser.add_argument(
        "--labelled-only", action="store_true", help="skip images without a label file"
    )
    parser.add_argument(
        "--link", action="store_true", help="create links instead of copies of the images"
    )


def run(args: argparse.Namespace) -> int:
    from ..workbench.convert import convert

    conversion = convert(
        args.inputs,
        args.output,
        source=args.source,
        target=args.to,
        images=args.images,
        classes=args.classes,
        attribute=args.attribute,
        split=args.split,
        seed=args.seed,
        clip=args.clip,
        labelled_only=args.labelled_only,
        link=args.link,
    )
    print("\n".join([*map(printable, _summary(conversion)), *_usage(conversion, args)]))
    return 0


def _summary(conversion: "Conversion") -> list:
    data = conversion.data
    lines = []
    for split, pictures in data.splits.items():
        counts = Counter(thing.category for p in pictures for thing in p.objects)
        classes = ", ".join(f"{name} {counts[name]}" for name in data.names if counts[name])
        classes = classes and f": {classes}"
        background = sum(not picture.objects for picture in pictures)
        unlabelled = sum(not picture.source for picture in pictures)
        lines.append(
            f"{split}: {count(len(pictures), 'image')}, {background} of them background "
            f"({unlabelled} without a label file), {count(counts.total(), 'object')}{classes}"
        )
        missing = [name for name in data.names if not counts[name]]
        if missing:
            lines.append(f"note: {split} has no {first(missing, 10)}: {len(missing)}")
    lines += [f"note: {what}: {number}" for what, number in data.notes.items() if number]
    return [*lines, conversion.summary()]


def _usage(conversion: "Conversion", args: argparse.Namespace) -> list:
    if args.to == "yolo":
        return [f"{printable(conversion.files[0])}: data file for training YOLO"]
    stem = printable(os.path.basename(os.path.abspath(args.output)))
    root = os.path.relpath(conversion.root)
    root = conversion.root if root.startswith(os.pardir) else root
    names = {split: f"{stem}_{split}" for split in conversion.data.splits}
    entries = [[names[s], _path(file), _path(root)] for s, file in zip(names, conversion.files)]
    train, classes = names.get("train"), len(conversion.data.names)
    test = names.get("val") or (None if train else names.get("test"))
    what, program = ("train", "train") if train else ("evaluate", "eval")
    return [
        f"to {what} on it, append to rsb-d2 {program} --config-file CONFIG:",
        f"  DATASETS.COCO_JSON {_word(entries)} \\",
        f"  DATASETS.TRAIN {_word(_names(train))} DATASETS.TEST {_word(_names(test))} \\",
        f"  MODEL.ROI_HEADS.NUM_CLASSES {classes} MODEL.RETINANET.NUM_CLASSES {classes}",
    ]


def _names(name: str | None) -> tuple:
    return (name,) if name else ()


def _path(path: str) -> str:
    # Not expanded to a home directory.
    return os.path.join(".", path) if path.startswith("~") else path


def _word(value: list | tuple) -> str:
    """Return a shell word that the config parses as this value."""
    text = repr(value)
    # Double quotes, unless the text has characters that are special within them.
    return shlex.quote(text) if set(text) & set('"\\$`!') else f'"{text}"'
