"""train_net.py and the tools as functions in this process, and the form of their errors."""

import importlib.util
import io
import os
import re
import sys
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from unittest.mock import patch

import torch
from detectron2.engine import default_argument_parser

from rsb_d2.addons.commands import make_parser
from tests.helpers.catalogs import catalogs_kept
from tests.helpers.paths import ROOT

# The command of each tool that is one of the command rsb-d2's programs.
COMMANDS = {
    "predict": "predict",
    "browse_data": "browse",
    "report": "report",
    "export": "export",
    "convert_data": "convert",
    "convert_weights": "convert-weights",
    "check": "check",
    "sample_data": "sample-data",
    "demo": "demo",
    "push": "push",
}


def load_program(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    program = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():  # a tool of the command line silences those of its process
        spec.loader.exec_module(program)
    return program


def load_tool(name):
    return load_program(ROOT / "tools" / f"{name}.py")


def parse_tool(name, words):
    """Parse the arguments of a tool."""
    if name not in COMMANDS:
        with patch.object(sys, "argv", [name, *words]):
            return load_tool(name).parse_args()
    return make_parser().parse_args([COMMANDS[name], *words])


def call_tool(name, folder, *arguments):
    """Run a tool with arguments in a folder; return its status, stdout and stderr."""
    tool, before = load_tool(name), (os.getcwd(), sys.argv)
    out, err = io.StringIO(), io.StringIO()
    os.chdir(folder)
    sys.argv = [f"{name}.py", *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            status = tool.main()
    finally:
        os.chdir(before[0])
        sys.argv = before[1]
    return status, out.getvalue(), err.getvalue()


def call_train_net(folder, *words):
    """Run train_net.py with arguments in this process; return the result of its main."""
    args = default_argument_parser().parse_args(list(words))
    with as_in_a_process_of_its_own(folder):
        return load_program(ROOT / "train_net.py").main(args)


@contextmanager
def as_in_a_process_of_its_own(folder):
    """Work in a folder, with one thread and without registered sample data."""
    before, threads = os.getcwd(), torch.get_num_threads()
    os.chdir(folder)
    torch.set_num_threads(1)
    try:
        with catalogs_kept("rsb_sample_train", "rsb_sample_val"):
            yield
    finally:
        torch.set_num_threads(threads)
        os.chdir(before)


def check_line(said, says):
    assert re.search(says, said), said
    assert len(said.strip().splitlines()) == 1 and len(said) < 900
    assert "Traceback" not in said


def only_error(name, errors):
    """Return the only error line among the lines of stderr, which may also show progress."""
    assert "Traceback" not in "".join(errors)
    assert errors[-1].startswith(f"{name}.py: "), errors
    (line,) = [line for line in errors if line.startswith(f"{name}.py: ")]
    return line
