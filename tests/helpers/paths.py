"""Where the repository is, and what lies in it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
# What MMDetection computed, and the parameter lists of the published detectors.
PUBLISHED_DETECTORS = ROOT / "tests" / "data" / "published_detectors"
