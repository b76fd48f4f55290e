"""The tools on a full disk: one line, and no part of a file."""

import json
import resource
from contextlib import contextmanager

import pytest

from tests.helpers.runs.programs import check_line, only_error

FILES = ["--annotations", "train.json", "--images", "train"]
RUN = ["--run", "{run}"]


@contextmanager
def disk_that_is_full(size=2000):
    """No file of this process can grow beyond this size in bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


FULL = {
    "predict": [*RUN, "train/4.jpg", "--threshold", "0.3", "--output", "out"],
    "browse_data": [*FILES, "--output", "out.html"],
    "report": [*FILES, "--results", "results.json", "--output", "out.html"],
    "convert_weights": ["{run}/model_final.pth", "out.pth", "--to", "timm"],
    "export": [*RUN, "--images", "train/4.jpg", "--output", "out.onnx"],
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n == "export" else []) for n in FULL]
)
def test_tools_on_a_full_disk(name, little_data, tool):
    records = [dict(image_id=1, category_id=3, bbox=[10, 12, 40, 30], score=0.9)]
    (little_data / "results.json").write_text(json.dumps(records))
    with disk_that_is_full():
        status, out, errors = tool(name, *FULL[name])
    assert status == 2
    check_line(only_error(name, errors), "cannot write .*out.*File too large")
    assert not [path for path in little_data.glob("out*") if path.is_file()]
