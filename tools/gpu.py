#!/usr/bin/env python
"""Run the tests and fill all rows of BENCHMARKS.md that need a GPU, on a machine that has one.

tools/gpu.py                        everything, within 25 minutes
tools/gpu.py inference training     some parts, each within 8 minutes
tools/gpu.py inference --rows x1    some rows of a part, by their names

What is found goes into BENCHMARKS.gpu.json as it comes, and as a table into BENCHMARKS.gpu.md;
rows that are not run stay there as they were. A row that fails, or takes longer than its limit,
stops no other. Nothing is downloaded.

The exit status is 0; 1 if a row failed; 2 for a mistake on the command line or without a GPU.
"""

import argparse
import functools
import os
import sys
from os.path import expanduser

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from _program import make_parser, tells_mistakes

from benchmarks.gpu.run import check_gpu, choose_rows, run_all


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help="all by default")
    parser.add_argument("--rows", nargs="+", default=[], help="those with this in their names")
    parser.add_argument("--json", type=expanduser, default="BENCHMARKS.gpu.json", metavar="FILE")
    parser.add_argument("--list", action="store_true", help="name the rows, and run none")
    return parser.parse_args()


@tells_mistakes
def main() -> int:
    args = parse_args()
    device = os.environ.get("RSB_TEST_DEVICE", "cuda")
    rows = choose_rows(args.parts, args.rows, device)
    if args.list:
        for part, of_part in rows.items():
            for row in of_part:
                print(f"{part}: {row.name}, at most {row.seconds} s: {' '.join(row.words)}")
        return 0
    check_gpu(device)
    say = functools.partial(print, flush=True)
    return 0 if run_all(rows, args.json, device, say) else 1


if __name__ == "__main__":
    sys.exit(main())
