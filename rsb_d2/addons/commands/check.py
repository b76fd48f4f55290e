"""Check a training in seconds, before it takes hours.

rsb-d2 check --config-file my.yaml
rsb-d2 check --config-file my.yaml --json --opts SOLVER.MAX_ITER 9000

Prints images, objects per class and split, box sizes against anchors and input size, images that
are both in train and val, the schedule in epochs and iterations, the learning rate against the
published one, the weights and the modules that start at random, and memory; then warnings, and
errors that would stop the training. Exit status: 0, or 1 if there are such errors.
"""

import argparse
import json
from os.path import expanduser


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config-file", type=expanduser, required=True, metavar="FILE")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--opts", nargs="*", default=[], metavar="KEY VALUE", help="overrides of the config"
    )


def run(args: argparse.Namespace) -> int:
    import rsb_d2

    rsb_d2.register_all()
    from ...model_zoo.model_zoo import find_config
    from ..workbench.check import as_text, check

    report = check(find_config(args.config_file), args.opts)
    print(json.dumps(report, indent=2) if args.json else as_text(report))
    return 1 if report["errors"] else 0
