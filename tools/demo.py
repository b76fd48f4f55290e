#!/usr/bin/env python
"""Pretrain a backbone on the sample data, and train a detector from it; as ``rsb-d2 demo``."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from rsb_d2_cli import main as run  # noqa: E402


def main() -> int:
    return run(["demo", *sys.argv[1:]], "demo.py")


if __name__ == "__main__":
    sys.exit(main())
