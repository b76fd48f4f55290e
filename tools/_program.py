"""Shared setup and error reporting of the measurement programs; import it before rsb_d2.

Importing this module makes ``import rsb_d2`` find the package next to this folder, installed or
not, and silences torch's FutureWarnings about Detectron2's code.
"""

import argparse
import functools
import os
import sys
import warnings
from typing import Callable

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
warnings.filterwarnings("ignore", category=FutureWarning)

from rsb_d2.errors import UserError, end_with_closed_pipe, printable  # noqa: E402


def make_parser(text: str) -> argparse.ArgumentParser:
    """Return a parser that prints a program's docstring as its description, with its line breaks.

    Args:
        text (str): the docstring of the program.

    Returns:
        ArgumentParser
    """
    return argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def report_user_errors(main: Callable[[], int]) -> Callable[[], int]:
    """Decorate ``main`` so that a :class:`UserError` becomes a one-line error and exit status 2.

    Characters that stdout cannot encode, such as those of file names that are not UTF-8, are
    printed as escape sequences.

    Args:
        main (callable): the main function of a program; returns its exit status.

    Returns:
        callable: a function with the same result that never raises :class:`UserError`.
    """
    name = os.path.basename(main.__code__.co_filename)

    @functools.wraps(main)
    def wrapper() -> int:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            with end_with_closed_pipe():
                return main()
        except UserError as e:
            print(f"{name}: error: {printable(str(e))}", file=sys.stderr)
            return 2

    return wrapper
