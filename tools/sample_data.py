#!/usr/bin/env python
"""Make sample data to train on; the same as ``rsb-d2 sample-data``."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from rsb_d2_cli import main as run  # noqa: E402


def main() -> int:
    return run(["sample-data", *sys.argv[1:]], "sample_data.py")


if __name__ == "__main__":
    sys.exit(main())
