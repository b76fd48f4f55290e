#!/usr/bin/env python
"""Check a training in seconds, before it takes hours.

tools/check.py --config-file my.yaml
tools/check.py --config-file my.yaml --json --opts SOLVER.MAX_ITER 9000

Prints images, objects per class and split, box sizes against anchors and input size, images that
are both in train and val, the schedule in epochs and iterations, the learning rate against the
published one, the weights and the modules that start at random, and memory; then warnings, and
errors that would stop the training. Exit status: 0, or 1 if there are such errors.
"""

import argparse
import json
import os
import sys
from os.path import expanduser

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from _program import make_parser, report_user_errors

from rsb_d2.addons.workbench.check import as_text, check


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--config-file", type=expanduser, required=True, metavar="FILE")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--opts", nargs="*", default=[], metavar="KEY VALUE", help="overrides of the config"
    )
    return parser.parse_args()


@report_user_errors
def main() -> int:
    args = parse_args()
    report = check(args.config_file, args.opts)
    print(json.dumps(report, indent=2) if args.json else as_text(report))
    return 1 if report["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
