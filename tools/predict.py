#!/usr/bin/env python
"""Detect objects in images and videos; the same as ``rsb-d2 predict``."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from rsb_d2_cli import main as run  # noqa: E402


def main() -> int:
    return run(["predict", *sys.argv[1:]], "predict.py")


if __name__ == "__main__":
    sys.exit(main())
