#!/usr/bin/env python
"""Inspect a data set before training on it: an HTML gallery and a PNG sheet.

tools/browse_data.py --config-file configs/frcnn_rsb_sample.yaml --output data.html
tools/browse_data.py --annotations train.json --images train --output data.html

Writes data.html and data.png. With a config, the page also shows how well its anchors cover the
boxes, and the errors that would stop a training.
"""

import argparse
import os
import sys
from os.path import expanduser

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from _program import make_parser, report_user_errors

from rsb_d2.addons.workbench.report.browse import browse
from rsb_d2.addons.workbench.report.html_page import check_output
from rsb_d2.addons.workbench.report.source import add_dataset_arguments, open_dataset


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    add_dataset_arguments(parser, "the first of DATASETS.TRAIN")
    parser.add_argument(
        "--output",
        type=expanduser,
        default="data.html",
        metavar="FILE",
        help="HTML page to write, together with a .png",
    )
    parser.add_argument(
        "--num-images", type=int, default=120, metavar="N", help="number of images in the gallery"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed for sampling the images")
    return parser.parse_args()


@report_user_errors
def main() -> int:
    args = parse_args()
    check_output(args.output, ".html")
    source, cfg = open_dataset(args, "TRAIN")
    page = browse(source, args.output, cfg=cfg, num_images=args.num_images, seed=args.seed)
    print(_summary(page))
    print(f"{args.output}, {args.output[: -len('.html')]}.png")
    return 0


def _summary(page: dict) -> str:
    width = max(map(len, [*page["classes"], "all classes"]))
    header = f"{'class':{width}} {'objects':>8} {'images':>8} {'size':>7} {'h / w':>6}"
    if page["config"]:
        header += "".join(f" {f'IoU {iou}':>8}" for iou in page["anchorIous"])
    lines = [header]
    for name, stats in zip([*page["classes"], "all classes"], page["stats"]):
        line = f"{name:{width}} {stats['objects']:8} {stats['images']:8}"
        if stats["objects"]:
            line += f" {stats['size']:7.1f} {stats['ratio']:6.2f}"
            line += "".join(f" {share:8.1%}" for share in stats.get("cover", [[]])[0])
        lines.append(line)
    if page["config"]:
        lines.append("IoU t: share of the boxes whose best anchor has an IoU of t or more")
    return "\n".join(lines + [f"note: {note}" for note in page["notes"]])


if __name__ == "__main__":
    sys.exit(main())
