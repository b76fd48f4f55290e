#!/usr/bin/env python
"""Train or evaluate a detector of rsb_d2, or pretrain a backbone; Detectron2's command line.

The same as ``rsb-d2 train``; the program is rsb_d2/engine/program.py.
"""

from detectron2.engine import default_argument_parser

from rsb_d2.engine.program import main, run

__all__ = ["main"]

if __name__ == "__main__":
    run(default_argument_parser().parse_args())
