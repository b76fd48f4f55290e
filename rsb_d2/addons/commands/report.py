"""Report on an evaluation: one HTML page from a data set and a results file.

rsb-d2 report --config-file configs/frcnn_rsb_sample.yaml \\
    --results output/frcnn_rsb_sample/inference/coco_instances_results.json
rsb-d2 report --annotations val.json --images val --results coco_instances_results.json

The exit status is 0; 1 if the page was written but the results contain no detections; 2 if no page
was written.
"""

import argparse
import os
import sys
from os.path import expanduser

from .arguments import add_dataset_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_dataset_arguments(parser, "the one that was evaluated")
    parser.add_argument(
        "--results",
        type=expanduser,
        required=True,
        metavar="FILE",
        help="coco_instances_results.json",
    )
    parser.add_argument(
        "--output",
        type=expanduser,
        default="report.html",
        metavar="FILE",
        help="HTML page to write",
    )
    parser.add_argument(
        "--task",
        choices=["bbox", "segm"],
        help="boxes or masks only (default: all that the results contain)",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.5,
        metavar="SCORE",
        help="minimum score for the confusion matrix and the ranking of images",
    )
    parser.add_argument(
        "--num-images",
        type=int,
        default=24,
        metavar="N",
        help="show the N worst and N best images, and a few of each class; 0 for none",
    )


def run(args: argparse.Namespace) -> int:
    import rsb_d2

    if args.config_file or args.dataset:
        rsb_d2.register_all()
    from ...data.predictions import read_skipped
    from ..workbench.report.html_page import check_output
    from ..workbench.report.report import report
    from ..workbench.report.results import read_results
    from ..workbench.report.source import open_dataset

    check_output(args.output, ".html")
    records = read_results(args.results)
    with_masks = any("segmentation" in record for record in records)
    source, _ = open_dataset(args, "TEST", with_masks=with_masks, results_file=args.results)
    skipped = read_skipped(args.results)
    if skipped:
        source = source.without_images(skipped)
    page = report(
        source,
        args.results,
        args.output,
        score_threshold=args.threshold,
        num_images=args.num_images,
        task=args.task,
        records=records,
    )
    print(_summary(page, args.output))
    if not records:
        print(f"{args.prog}: warning: {args.results} holds no detection at all", file=sys.stderr)
        return 1
    return 0


def _summary(page: dict, output: str) -> str:
    lines = [f"{'':5}" + "".join(f"{name:>7}" for name in page["figures"])]
    for task, data in page["tasks"].items():
        figures = ("-" if f is None else f"{100 * f:.2f}" for f in data["figures"])
        lines.append(f"{task:5}" + "".join(f"{f:>7}" for f in figures))
    return "\n".join([*lines, f"{output}: {os.path.getsize(output) / 1e6:.1f} MB"])
