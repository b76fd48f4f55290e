#!/usr/bin/env python
"""Run the tests for a GPU and all measurements of BENCHMARKS.md that need one.

tools/gpu.py                            everything
tools/gpu.py --seconds 345 --missing    the rows without a result, for less than 6 minutes
tools/gpu.py inference training         some parts
tools/gpu.py inference --rows x1        some rows of a part, by their names

Results are written to BENCHMARKS.gpu.json as they arrive, and as a table to BENCHMARKS.gpu.md; rows
that are not run keep their earlier results. A row that fails or exceeds its time limit does not
stop the others. Nothing is downloaded.

The exit status is 0; 1 if a row failed or was not run; 2 for a mistake on the command line or
without a GPU.
"""

import argparse
import functools
import math
import os
import sys
from os.path import expanduser

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import torch
from _program import make_parser, report_user_errors

from benchmarks.gpu import ROOT, choose_rows, measured_rows, run_all
from rsb_d2.addons.workbench.sample import make_sample_data
from rsb_d2.errors import UserError


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help="parts to run (default: all)")
    parser.add_argument(
        "--rows", nargs="+", default=[], help="rows whose names contain one of these words"
    )
    parser.add_argument("--json", type=expanduser, default="BENCHMARKS.gpu.json", metavar="FILE")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="start no row that could end later"
    )
    parser.add_argument(
        "--missing", action="store_true", help="leave out rows that have a result in --json"
    )
    parser.add_argument("--list", action="store_true", help="list the rows without running them")
    return parser.parse_args()


@report_user_errors
def main() -> int:
    args = parse_args()
    device = os.environ.get("RSB_TEST_DEVICE", "cuda")
    measured = measured_rows(args.json) if args.missing else ()
    rows = choose_rows(args.parts, args.rows, device, measured)
    if args.list:
        for part, of_part in rows.items():
            for row in of_part:
                print(f"{part}: {row.name}, at most {row.seconds} s: {' '.join(row.words)}")
        return 0
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("torch finds no GPU here; tools/benchmark.py measures on a CPU")
    if rows.get("train"):
        make_sample_data(str(ROOT / "datasets/rsb_sample"))
    say = functools.partial(print, flush=True)
    return 0 if run_all(rows, args.json, say, args.seconds) else 1


if __name__ == "__main__":
    sys.exit(main())
