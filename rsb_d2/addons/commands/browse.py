"""Inspect a data set before training on it: an HTML gallery and a PNG sheet.

rsb-d2 browse --config-file configs/frcnn_rsb_sample.yaml --output data.html
rsb-d2 browse --annotations train.json --images train --output data.html

Writes data.html and data.png. With a config, the page also shows how well its anchors cover the
boxes, and the errors that would stop a training.
"""

import argparse
from os.path import expanduser

from .arguments import add_dataset_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
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


def run(args: argparse.Namespace) -> int:
    import rsb_d2

    if args.config_file or args.dataset:
        rsb_d2.register_all()
    from ..workbench.report.browse import browse
    from ..workbench.report.html_page import check_output
    from ..workbench.report.source import open_dataset

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
