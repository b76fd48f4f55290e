"""The console command ``rsb-d2``; its programs are in ``rsb_d2/addons/commands``.

A module outside the package, so that it runs before ``rsb_d2/__init__.py``: a program imports
torch and Detectron2 when it needs them, and ``rsb-d2 --help`` imports neither.
"""

import sys
from typing import List

is_running = False  # read by rsb_d2/__init__.py


def main(argv: List[str] | None = None, tool: str = "") -> int:
    """Run a program.

    Args:
        argv (list[str] or None): name of the program and its arguments; None for ``sys.argv[1:]``.
        tool (str): name of the file in tools/ that runs it, for messages.

    Returns:
        int: exit status.
    """
    global is_running
    is_running = True
    try:
        from rsb_d2.addons.commands import run

        return run(sys.argv[1:] if argv is None else argv, tool)
    finally:
        is_running = False


if __name__ == "__main__":
    # Under its own name, where the package looks for it.
    from rsb_d2_cli import main as run_command

    sys.exit(run_command())
