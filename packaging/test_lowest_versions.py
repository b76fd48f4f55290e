#!/usr/bin/env python
"""Run the core's tests with the lowest versions that setup.py accepts; to be run by hand.

packaging/test_lowest_versions.py DIR                          Detectron2 0.6, as `make` installs it
packaging/test_lowest_versions.py DIR --detectron2 CHECKOUT    Detectron2's main branch
packaging/test_lowest_versions.py DIR --torch 2.10.0 --torchvision 0.25.0 --tests tests/modeling

DIR becomes a virtual environment of about 6 GB, which is kept for the next run; delete it yourself.
`uv` (pip install uv) finds the lowest versions. torch and Detectron2 are not in setup.py, because
they are the user's own: their lowest versions are the defaults of this program.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ["tests/modeling", "tests/config", "tests/checkpoint", "tests/solver"]
TESTS += ["tests/engine/test_trainer.py", "tests/engine/test_resume.py"]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=lambda text: Path(text).expanduser().resolve())
    parser.add_argument("--tests", nargs="+", default=TESTS, help="(the core's)")
    parser.add_argument("--python", default="3.10", help="version or interpreter (3.10)")
    parser.add_argument("--torch", default="2.6.0", help="(2.6.0)")
    parser.add_argument("--torchvision", default="0.21.0", help="(0.21.0)")
    parser.add_argument("--detectron2", metavar="CHECKOUT", help="source tree to build and install")
    return parser.parse_args()


def run(*words: str) -> None:
    done = subprocess.run(words, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    if done.returncode:
        sys.exit(done.returncode)


def main() -> None:
    args = parse_args()
    python = str(args.folder / "bin" / "python")
    install = ["uv", "pip", "install", "--python", python]
    if not args.folder.exists():
        run("uv", "venv", "--seed", "--python", args.python, str(args.folder))
    # OpenCV 4 because 5 needs NumPy 2. The tests' own packages are not what is tested.
    others = ["opencv-python-headless==4.8.0.76", "pytest==9.2.0", "pytest-xdist==3.8.0"]
    others += ["hypothesis==6.168.5", "setuptools==80.10.2", "wheel==0.48.0", "pip==26.0"]
    versions = [f"torch=={args.torch}", f"torchvision=={args.torchvision}"]
    run(*install, "--resolution", "lowest-direct", "-r", "setup.py", *versions, *others)
    if args.detectron2:
        run(*install, "--no-build-isolation", args.detectron2)
    else:
        run(python, "tools/install_detectron2.py")
    run("uv", "pip", "list", "--python", python)
    run(python, "-m", "pytest", "-q", "-n0", *args.tests)


if __name__ == "__main__":
    main()
