"""Install Detectron2 0.6 for today's Python, unless there is one already.

rsb-d2 install-detectron2
rsb-d2 install-detectron2 --wheel-dir wheels
    only writes the wheel to a folder, to copy it to another machine

Install torch and torchvision first. Rotated boxes and deformable convolution are left out, which
need a compiler: build Detectron2's main branch as its INSTALL.md describes to have them.
"""

import argparse
import runpy
from os.path import expanduser
from pathlib import Path

# A wheel has the installer in this folder, a checkout in packaging/.
_FOLDERS = (Path(__file__).parent / "packaging", Path(__file__).parents[3] / "packaging")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--wheel-dir", type=expanduser, default="", metavar="FOLDER", help="write the wheel only"
    )
    parser.add_argument(
        "--sdist",
        type=expanduser,
        default="",
        metavar="FILE",
        help="use this pb1-detectron2 0.6 .tar.gz instead of downloading it",
    )


def run(args: argparse.Namespace) -> int:
    folder = next(folder for folder in _FOLDERS if folder.is_dir())
    installer = runpy.run_path(str(folder / "install_detectron2.py"))
    options = {"--wheel-dir": args.wheel_dir, "--sdist": args.sdist}
    return installer["main"]([word for pair in options.items() if pair[1] for word in pair])
