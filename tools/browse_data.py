#!/usr/bin/env python
"""Inspect a data set before training on it; the same as ``rsb-d2 browse``."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from rsb_d2_cli import main as run  # noqa: E402


def main() -> int:
    return run(["browse", *sys.argv[1:]], "browse_data.py")


if __name__ == "__main__":
    sys.exit(main())
