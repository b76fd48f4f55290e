"""The programs of the console command ``rsb-d2``, which the files in tools/ run as well.

Uses every other add-on. A program is a module with a docstring, which is its description,
``add_arguments(parser)`` and ``run(args)``, which returns its exit status. Importing it imports
only the standard library: ``run`` imports the rest, and calls :func:`rsb_d2.register_all` if it
needs Detectron2.
"""

import argparse
import importlib
import sys
import warnings
from typing import List

from ...errors import UserError, end_with_closed_pipe, printable

# By the name on the command line: the module here.
PROGRAMS = {
    "train": "train",
    "eval": "eval",
    "predict": "predict",
    "check": "check",
    "convert": "convert",
    "convert-weights": "convert_weights",
    "browse": "browse",
    "report": "report",
    "export": "export",
    "push": "push",
    "sample-data": "sample_data",
    "demo": "demo",
    "install-detectron2": "install_detectron2",
    "completion": "completion",
}


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=24, width=100)


def make_parser(tool: str = "") -> argparse.ArgumentParser:
    """Return the parser of all programs.

    Args:
        tool (str): name of the file in tools/ that runs one of them, for messages.
    """
    parser = argparse.ArgumentParser(
        prog="rsb-d2",
        description="Train and use detectors with timm's ResNet backbones in Detectron2.",
        epilog="`rsb-d2 PROGRAM --help` describes a program.",
        formatter_class=_HelpFormatter,
    )
    subparsers = parser.add_subparsers(dest="program", metavar="PROGRAM", required=True)
    for name, module in PROGRAMS.items():
        program = importlib.import_module(f".{module}", __name__)
        subparser = subparsers.add_parser(
            name,
            prog=tool or None,
            help=program.__doc__.partition("\n")[0].rstrip("."),
            description=program.__doc__,
            formatter_class=_HelpFormatter,
        )
        program.add_arguments(subparser)
        subparser.set_defaults(function=program.run, prog=subparser.prog, parser=subparser)
    return parser


def run(argv: List[str], tool: str = "") -> int:
    """Run a program.

    A :class:`UserError` becomes a one-line error. Characters that stdout cannot encode, such as
    those of file names that are not UTF-8, are printed as escape sequences.

    Args:
        argv (list[str]): name of the program and its arguments.
        tool (str): as of :func:`make_parser`.

    Returns:
        int: exit status; 2 after a :class:`UserError`.
    """
    with end_with_closed_pipe(), warnings.catch_warnings():
        args, others = make_parser(tool).parse_known_args(argv)
        parser = vars(args).pop("parser")
        if others:  # reported with the usage of the program, not with that of the command
            parser.error(f"unrecognized arguments: {' '.join(others)}")
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="backslashreplace")
        warnings.simplefilter("ignore", FutureWarning)  # torch's about Detectron2's code
        try:
            return args.function(args)
        except UserError as e:
            print(f"{args.prog}: error: {printable(str(e))}", file=sys.stderr)
            return 2
