#!/usr/bin/env python
"""Check a training before it starts; the same as ``rsb-d2 check``."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from rsb_d2_cli import main as run  # noqa: E402


def main() -> int:
    return run(["check", *sys.argv[1:]], "check.py")


if __name__ == "__main__":
    sys.exit(main())
