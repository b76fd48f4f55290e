""".ci/unchanged.py: whether a command leaves the files of its working directory as they were."""

import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT


def run(folder, program):
    words = [sys.executable, str(ROOT / ".ci" / "unchanged.py"), sys.executable, "-c", program]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=60)


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "checkout"
    for path in ("output/run/config.yaml", "rsb_d2/code.py", ".venv/lib.py"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("before")
    return folder


def test_a_command_that_writes_elsewhere(checkout, tmp_path):
    outside = f"open({str(tmp_path / 'outside')!r}, 'w'); open('.venv/lib.py', 'w')"
    caches = "import os; os.mkdir('rsb_d2/__pycache__'); open('rsb_d2/__pycache__/c.pyc', 'w')"
    done = run(
        checkout,
        f"{outside}; {caches}; print(open('output/run/config.yaml').read())",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "before\n", "")


@pytest.mark.parametrize(
    "program, path",
    [
        ("open('output/run/config.yaml', 'w').write('after!')", "output/run/config.yaml"),
        ("import os; os.utime('rsb_d2/code.py')", "rsb_d2/code.py"),
        ("import os; os.remove('output/run/config.yaml')", "output/run/config.yaml"),
        ("import os; os.makedirs('datasets/new')", "datasets/new"),
        ("import os; os.symlink('nowhere', 'datasets')", "datasets"),
    ],
)
def test_a_file_that_is_changed_is_named(checkout, program, path):
    done = run(checkout, program)
    assert done.returncode == 1 and f"  {path}" in done.stderr


def test_a_command_that_fails_fails(checkout):
    assert run(checkout, "raise SystemExit(3)").returncode == 3
