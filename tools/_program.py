"""How every program of this folder begins and ends; to be imported before anything of rsb_d2.

From here on rsb_d2 is the one beside this folder, installed or not, and what torch says about
Detectron2's code is not heard.
"""

import argparse
import functools
import os
import sys
import warnings
from typing import Callable

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
warnings.filterwarnings("ignore", category=FutureWarning)

from rsb_d2.errors import UserError, printable  # noqa: E402


def make_parser(text: str) -> argparse.ArgumentParser:
    """A parser whose help is the program's own text, line by line.

    Args:
        text (str): the docstring of the program.

    Returns:
        ArgumentParser
    """
    return argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def tells_mistakes(main: Callable[[], int]) -> Callable[[], int]:
    """Let a mistake of the user end a program with one line and the exit status 2.

    What stdout cannot encode, such as the name of a file that is not UTF-8, is printed in escapes.

    Args:
        main (callable): of a program; returns its exit status.

    Returns:
        callable: the same, which raises no :class:`UserError`.
    """
    name = os.path.basename(main.__code__.co_filename)

    @functools.wraps(main)
    def told() -> int:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            return main()
        except UserError as e:
            print(f"{name}: error: {printable(str(e))}", file=sys.stderr)
            return 2

    return told
