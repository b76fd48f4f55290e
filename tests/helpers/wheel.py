"""The wheel of this project, and an environment with nothing else of it."""

import shutil
import subprocess
import sys
import sysconfig
import venv

from .paths import ROOT

_FILES = ("setup.py", "rsb_d2_cli.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")


def build_wheel(folder):
    """Build the wheel from a copy of the checkout in an empty folder; return its path."""
    source = folder / "source"
    for name in ("rsb_d2", "configs", "packaging"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in _FILES:
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "-w", str(folder), str(source)], check=True, capture_output=True)
    (wheel,) = folder.glob("rsb_d2-*.whl")
    return wheel


def install_wheel(wheel, folder):
    """Install a wheel into a new environment, which finds other packages in the current one.

    Returns:
        Path: the folder of the environment's programs.
    """
    venv.create(folder, symlinks=True, with_pip=False)
    programs = folder / "bin"
    # --python before the path of other packages, which also has an editable rsb_d2.
    pip = [sys.executable, "-m", "pip", "--python", str(programs / "python"), "install", "-q"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True, capture_output=True)
    (site,) = folder.glob("lib/python*/site-packages")
    # Files *.pth of a folder that is named here, such as the one of an editable rsb_d2, have no
    # effect.
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return programs
