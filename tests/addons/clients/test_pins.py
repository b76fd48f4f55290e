"""The programs that are tested here are those that setup.py and the Makefile name."""

import re
from importlib.metadata import version

import pytest

from tests.helpers.paths import ROOT


@pytest.mark.parametrize("name, file", [("sahi", "Makefile"), ("supervision", "requirements.txt")])
def test_one_version_everywhere(name, file):
    for path in ("setup.py", file):
        (pinned,) = re.findall(rf"\b{name}==([\d.]+)", (ROOT / path).read_text())
        assert pinned == version(name), path
