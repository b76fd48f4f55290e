#!/usr/bin/env python
"""Compare this project with stock Detectron2, and its pretraining with timm's own loop.

tools/benchmark.py inference
tools/benchmark.py inference --dtype bfloat16 --weights output/frcnn_rsb_sample/model_final.pth
tools/benchmark.py pretraining --loader-workers 2
tools/benchmark.py evaluation --images 1000 --memory
tools/benchmark.py deployment --threads 2 --cpu-time

All contenders use the same weights and images. Each benchmark first verifies that they compute the
same results. They are then measured in turn, A B A B, by torch.utils.benchmark; the output is its
table of medians, and the ratios of neighboring measurements with minimum and maximum in brackets.

The exit status is 0; 1 if the results differ, in which case nothing is measured; 2 for a mistake on
the command line.
"""

import argparse
import importlib
import json
import os
import shlex
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from _program import make_parser, report_user_errors

from benchmarks import harness

BENCHMARKS = (
    *("inference", "deployment", "prediction", "training", "trainer"),
    *("pretraining", "evaluation", "datasets", "startup"),
)


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    sub_parsers = parser.add_subparsers(dest="what", required=True, metavar="|".join(BENCHMARKS))
    for name in BENCHMARKS:
        module = importlib.import_module(f"benchmarks.{name}")
        sub_parser = sub_parsers.add_parser(
            name,
            help=module.__doc__.splitlines()[0],
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        harness.add_common_arguments(sub_parser)
        module.add_arguments(sub_parser)
    return parser.parse_args()


@report_user_errors
def main() -> int:
    args = parse_args()
    try:
        report = harness.run(args.what, args)
    except harness.Different as e:
        print(f"NOT EQUAL: {e}")
        return 1
    if args.json:
        report["command"] = shlex.join(["tools/benchmark.py", *sys.argv[1:]])
        with open(args.json, "w") as f:
            json.dump(report, f, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
