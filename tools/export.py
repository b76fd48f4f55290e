#!/usr/bin/env python
"""Export a trained detector to other formats; the same as ``rsb-d2 export``."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from rsb_d2_cli import main as run  # noqa: E402


def main() -> int:
    return run(["export", *sys.argv[1:]], "export.py")


if __name__ == "__main__":
    sys.exit(main())
