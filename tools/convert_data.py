#!/usr/bin/env python
"""Convert data sets; the same as ``rsb-d2 convert``."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from rsb_d2_cli import main as run  # noqa: E402


def main() -> int:
    return run(["convert", *sys.argv[1:]], "convert_data.py")


if __name__ == "__main__":
    sys.exit(main())
