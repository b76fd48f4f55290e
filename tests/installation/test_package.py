"""The package as a whole: what it exports, and what it says where Detectron2 is missing."""

import os
import subprocess
import sys

import pytest

import rsb_d2
from tests.helpers.paths import ROOT


def run_python(code):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_without_detectron2_the_import_says_how_to_get_it():
    result = run_python("import sys; sys.modules['detectron2'] = None; import rsb_d2")
    assert result.returncode != 0
    assert "tools/install_detectron2.py" in result.stderr.splitlines()[-1]


@pytest.mark.slow
def test_public_names_and_registered_backbones():
    result = run_python(
        "import rsb_d2\n"
        "for name in rsb_d2.__all__: getattr(rsb_d2, name)\n"
        "from detectron2.modeling import BACKBONE_REGISTRY as registry\n"
        "for name in ('', '_fpn', '_retinanet_fpn'): registry.get(f'build_timm{name}_backbone')\n"
    )
    assert result.returncode == 0, result.stderr


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(rsb_d2, "no_such_name")
