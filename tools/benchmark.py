#!/usr/bin/env python
"""Compare this project with stock Detectron2, and its pretraining with timm's own loop.

tools/benchmark.py inference
tools/benchmark.py inference --dtype bfloat16 --weights output/frcnn_rsb_sample/model_final.pth
tools/benchmark.py pretraining --loader-workers 2
tools/benchmark.py startup --json startup.json
tools/benchmark.py deployment --threads 2

Both use the same weights and images and run in turn, A B A B, after a warm-up. Each measurement
first verifies that both compute the same results, then prints medians, minimum and maximum in
brackets, and the ratios pair by pair.

The exit status is 0; 1 if the results differ, in which case no ratio is printed; 2 for a mistake on
the command line.
"""

import argparse
import json
import os
import shlex
import sys
from os.path import expanduser

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from _program import make_parser, report_user_errors

from benchmarks import (
    evaluation,
    inference,
    pretraining,
    startup,
    training,
)
from benchmarks.data_sets import starts
from benchmarks.report import add_ratios, format_report
from benchmarks.running import deployment, prediction, trainer
from benchmarks.timing import machine

SUB_COMMANDS = {
    "inference": inference,
    "prediction": prediction,
    "training": training,
    "pretraining": pretraining,
    "evaluation": evaluation,
    "startup": startup,
    "datasets": starts,
    "trainer": trainer,
    "deployment": deployment,
}


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    sub_parsers = parser.add_subparsers(dest="what", required=True, metavar="|".join(SUB_COMMANDS))
    for name, module in SUB_COMMANDS.items():
        sub_parser = sub_parsers.add_parser(
            name,
            help=module.__doc__.splitlines()[0],
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub_parser.add_argument(
            "--runs", type=int, default=5, help="timed runs of each (default: 5)"
        )
        sub_parser.add_argument(
            "--json",
            type=expanduser,
            default="",
            metavar="FILE",
            help="write the report to this file",
        )
        module.add_arguments(sub_parser)
    args = parser.parse_args()
    if args.runs < 1:
        parser.error(f"--runs is {args.runs}; it must be 1 or more")
    return args


@report_user_errors
def main() -> int:
    args = parse_args()
    report = SUB_COMMANDS[args.what].run(args)
    add_ratios(report)
    report["machine"] = machine(getattr(args, "device", "cpu"))
    report["command"] = shlex.join(["tools/benchmark.py", *sys.argv[1:]])
    if args.json:
        with open(args.json, "w") as f:
            json.dump(report, f, indent=1)
    print(format_report(report))
    return 0 if report["comparison"]["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
