"""Evaluate a detector or a classifier on the test sets of a config.

rsb-d2 eval --config-file output/mine/config.yaml MODEL.WEIGHTS output/mine/model_best.pth
rsb-d2 eval --config-file frcnn_rsb_1x MODEL.WEIGHTS zoo://frcnn_rsb_1x

The same as rsb-d2 train --eval-only.
"""

import argparse

from . import train


def add_arguments(parser: argparse.ArgumentParser) -> None:
    train.add_arguments(parser, is_evaluation=True)
    parser.set_defaults(eval_only=True)


run = train.run
