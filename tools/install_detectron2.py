#!/usr/bin/env python
"""Install Detectron2 0.6, patched for current dependencies: see packaging/install_detectron2.py."""

import runpy
from pathlib import Path

PROGRAM = Path(__file__).resolve().parents[1] / "packaging" / "install_detectron2.py"

if __name__ == "__main__":
    runpy.run_path(str(PROGRAM), run_name="__main__")
