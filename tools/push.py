#!/usr/bin/env python
"""Upload a detector to the Hugging Face hub; the same as ``rsb-d2 push``."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from rsb_d2_cli import main as run  # noqa: E402


def main() -> int:
    return run(["push", *sys.argv[1:]], "push.py")


if __name__ == "__main__":
    sys.exit(main())
