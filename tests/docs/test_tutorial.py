"""The commands of docs/tutorial.md, on the data that it names.

``RSB_REAL_DATA`` is a folder with ``bccd``, the folder ``BCCD`` of
https://github.com/Shenggan/BCCD_Dataset; without it, the test is skipped. The training is cut to a
few iterations, because the page measures the complete one.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.clone import find_blocks, split_commands
from tests.helpers.paths import ROOT

DATA = Path(os.environ.get("RSB_REAL_DATA", ""), "bccd").absolute()
SHORT = " SOLVER.MAX_ITER 20 SOLVER.WARMUP_ITERS 5 TEST.EVAL_PERIOD 20"


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("RSB_REAL_DATA"), reason="RSB_REAL_DATA does not name a folder with data"
)
def test_every_command_of_the_tutorial(tmp_path):
    for name in ("tools", "configs", "train_net.py", "rsb_d2", "rsb_d2_cli.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "FVCORE_CACHE": str(tmp_path / "cache"),
    }
    block = find_blocks("docs/tutorial.md", "bash")[0]
    commands = split_commands(block.text)
    assert len(commands) == 6
    clone, *commands = commands
    target = tmp_path / clone.split()[-1]
    target.mkdir(parents=True)
    (target / "BCCD").symlink_to(DATA)
    for command in commands:
        command = command.replace("python ", f"{sys.executable} ", 1)
        if "train_net.py" in command and "--eval-only" not in command:
            command += SHORT
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        if "convert_data" in command:
            counts = {
                split: len(json.loads((tmp_path / f"datasets/bccd/{split}.json").read_text())[key])
                for split, key in (("train", "images"), ("val", "images"), ("test", "annotations"))
            }
            assert counts == {"train": 205, "val": 87, "test": 945}
    assert (tmp_path / "output" / "bccd" / "model_best.pth").is_file()
    assert (tmp_path / "output" / "bccd_report.html").is_file()
