"""Memory that is reused after it is freed, and images that a GPU copies by itself."""

import platform
import subprocess
import sys

import pytest
import torch

from rsb_d2 import Trainer
from rsb_d2.memory import send_images
from tests.helpers.paths import ROOT
from tests.helpers.runs.resumable_run import make_config

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


OPTS = ["DATALOADER.NUM_WORKERS", "0", "SEED", "5"]


def test_send_images_copies_a_batch(run_folder, device):
    plain = next(iter(Trainer.build_train_loader(make_config(run_folder, *OPTS))))
    cfg = make_config(run_folder, *OPTS, "MODEL.DEVICE", device)
    batch = next(iter(Trainer.build_train_loader(cfg)))
    sent = send_images(batch, torch.device(device))
    assert len(sent) == len(plain) == cfg.SOLVER.IMS_PER_BATCH
    for expected, loaded, item in zip(plain, batch, sent):
        assert loaded["image"].is_pinned() == (device == "cuda")
        assert item["image"].device.type == device and item["image"].dtype == torch.uint8
        assert torch.equal(item["image"].cpu(), expected["image"])
        assert item["instances"] is loaded["instances"] and item.keys() == expected.keys()
