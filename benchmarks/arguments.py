"""Options that several sub-commands share, and what they stand for."""

import argparse
import re
from typing import Tuple

import torch

from rsb_d2.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """``--device``, read by :func:`find_device`."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (cpu)")


def add_image_arguments(parser: argparse.ArgumentParser, size: str = "640x853") -> None:
    """``--image-size``, read by :func:`find_size`, and ``--batch``."""
    parser.add_argument("--image-size", default=size, metavar="HxW", help=f"pixels ({size})")
    parser.add_argument("--batch", type=int, default=1, help="images at a time (1)")


def add_dtype_argument(parser: argparse.ArgumentParser) -> None:
    """``--dtype``, a key of :data:`DTYPES`."""
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="of ours (float32)")


def add_profile_argument(parser: argparse.ArgumentParser) -> None:
    """``--profile``."""
    parser.add_argument("--profile", action="store_true", help="a table of the operators by time")


def check_at_least_one(args: argparse.Namespace, *options: str) -> None:
    """Refuse a number below 1.

    Args:
        args (Namespace): of a sub-command.
        options (str): names of those that count something.

    Raises:
        UserError: naming the first that is too low.
    """
    for option in options:
        if getattr(args, option) < 1:
            raise UserError(f"--{option} is {getattr(args, option)}; it must be 1 or more")


def find_device(device: str) -> torch.device:
    """The device of ``--device``.

    Raises:
        UserError: if there is no such device.
    """
    try:
        found = torch.device(device)
    except RuntimeError:
        raise UserError(f"--device is {device!r}; write cpu or cuda") from None
    if found.type == "cuda":
        if not torch.cuda.is_available() or (found.index or 0) >= torch.cuda.device_count():
            raise UserError(f"--device is {device}, but torch finds no such GPU; write cpu")
    elif found.type != "cpu":
        raise UserError(f"--device is {device}; write cpu or cuda")
    return found


def find_size(image_size: str) -> Tuple[int, int]:
    """Height and width in pixels of ``--image-size``.

    Raises:
        UserError: if it is not of the form 640x853.
    """
    match = re.fullmatch(r"(\d+)x(\d+)", image_size)
    if not match or not all(int(n) for n in match.groups()):
        raise UserError(f"--image-size is {image_size!r}; write height x width, as 640x853")
    return int(match.group(1)), int(match.group(2))
