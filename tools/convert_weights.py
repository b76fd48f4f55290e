#!/usr/bin/env python
"""Convert weights between libraries; the same as ``rsb-d2 convert-weights``."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from rsb_d2_cli import main as run  # noqa: E402


def main() -> int:
    return run(["convert-weights", *sys.argv[1:]], "convert_weights.py")


if __name__ == "__main__":
    sys.exit(main())
