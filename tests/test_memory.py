"""Large allocations without new pages for each."""

import platform
import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT

# The module by itself, as the package would import torch. A tensor's memory comes from the same
# malloc as these bytes.
PROGRAM = """
import resource, runpy, sys
reuse_freed_memory = runpy.run_path(sys.argv[1])["reuse_freed_memory"]

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for number in range(4):
        assert len(b"x" * 2**26) == 2**26
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = pages()
reused = reuse_freed_memory()
pages()  # grows once
print(reused, before, pages())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
def test_freed_memory_is_reused():
    words = [sys.executable, "-c", PROGRAM, ROOT / "rsb_d2" / "memory.py"]
    result = subprocess.run(words, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    reused, before, after = result.stdout.split()
    assert reused == "True"
    # 16,384 pages of 4 KiB for each of four, or, where the system has huge ones, 32 of 2 MiB.
    assert int(before) >= 4 * 32 and int(after) <= 4


def test_another_c_library_is_left_alone(monkeypatch):
    from rsb_d2 import memory

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert memory.reuse_freed_memory() is False
