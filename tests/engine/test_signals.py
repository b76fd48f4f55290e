"""A signal ends a run with a checkpoint; a second one ends it at once."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rsb_d2 import Trainer
from rsb_d2.checkpoint import find_newest_complete
from tests.helpers.paths import CONFIGS, ROOT
from tests.helpers.runs.resumable_run import load, make_config

LONG = [
    *("DATASETS.SAMPLE_DATA", "", "MODEL.TIMM.NAME", "resnet10t", "SOLVER.IMS_PER_BATCH", "2"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "SOLVER.MAX_ITER", "100000"),
    *("MODEL.FPN.OUT_CHANNELS", "32", "MODEL.ROI_BOX_HEAD.FC_DIM", "32"),
    *("SOLVER.CHECKPOINT_PERIOD", "100000", "TEST.EVAL_PERIOD", "0", "SOLVER.OPTIMIZER", "SGD"),
]


def start(folder, output, *opts, launcher=()):
    program = [*(launcher or [sys.executable]), str(ROOT / "train_net.py")]
    config = ["--config-file", str(CONFIGS / "frcnn_rsb_sample.yaml")]
    with open(f"{output}.log", "w") as log:
        return subprocess.Popen(
            [*program, *config, *opts, *LONG, "OUTPUT_DIR", str(output)],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_for(text, output, process, timeout=120):
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        log = Path(f"{output}.log").read_text()
        if text in log:
            return
        assert process.poll() is None, log[-3000:]
        time.sleep(0.05)
    process.kill()
    raise AssertionError(f"{text!r} is not in the log: {log[-3000:]}")


@pytest.mark.parametrize(
    "number, status",
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_a_signal_ends_the_run_with_a_checkpoint(run_folder, tmp_path, number, status):
    output = tmp_path / "run"
    process = start(run_folder, output, "DATALOADER.NUM_WORKERS", "2")
    try:
        wait_for("Starting training", output, process)
        wait_for("iter: 19", output, process)
        os.killpg(process.pid, number)  # the loader's workers get it as well, as from Ctrl-C
        assert process.wait(timeout=120) == status
    finally:
        process.kill()
    log = Path(f"{output}.log").read_text()
    assert "Traceback" not in log
    assert "Stopped by a signal after" in log
    newest = load(find_newest_complete(str(output)))
    assert newest["iteration"] + 1 == int(re.search(r"signal after (\d+) iter", log)[1])
    assert newest["trainer"]["data"]["num_images"] == 2 * (newest["iteration"] + 1)


def test_a_second_signal_ends_the_run_at_once():
    program = """
import os, runpy, signal, sys, time
watch = runpy.run_path(sys.argv[1])["SignalWatch"]()  # torch, which it needs not, takes seconds
watch.start()
os.kill(os.getpid(), signal.SIGTERM)
os.kill(os.getpid(), signal.SIGTERM)  # of the same sender, or passed on by a launcher
print(watch.received, flush=True)
if len(sys.argv) > 2:
    time.sleep(0.8)
    os.kill(os.getpid(), signal.SIGINT)
    while True:
        time.sleep(0.1)
watch.stop()
print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
"""
    command = [sys.executable, "-c", program, str(ROOT / "rsb_d2" / "engine" / "signals.py")]
    once = subprocess.run(command, capture_output=True, text=True)
    assert (once.stdout.split(), once.returncode) == (["15", "True"], 0), once.stderr
    twice = subprocess.run([*command, "2"], capture_output=True, text=True)
    assert (twice.stdout.split(), twice.returncode) == (["15"], 130), twice.stderr


def test_a_signal_during_an_evaluation_does_not_wait_for_its_end(run_folder, tmp_path):
    class Interrupted(Trainer):
        @classmethod
        def test(cls, cfg, model):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
            raise AssertionError("the evaluation has come to its end")

    cfg = make_config(run_folder, "SOLVER.MAX_ITER", "4", "OUTPUT_DIR", str(tmp_path))
    cfg.defrost()
    cfg.TEST.EVAL_PERIOD = 2
    cfg.DATASETS.TEST = ("rsb_sample_val",)
    cfg.freeze()
    trainer = Interrupted(cfg)
    trainer.resume_or_load(resume=False)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as e:
        trainer.train()
    assert e.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    newest = find_newest_complete(str(tmp_path))
    assert newest == str(tmp_path / "model_0000001.pth")
    assert load(newest)["iteration"] == 1
