#!/usr/bin/env python
"""Report on an evaluation; the same as ``rsb-d2 report``."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from rsb_d2_cli import main as run  # noqa: E402


def main() -> int:
    return run(["report", *sys.argv[1:]], "report.py")


if __name__ == "__main__":
    sys.exit(main())
