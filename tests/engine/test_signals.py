"""SIGTERM and SIGINT: a checkpoint, an exit status, and signals of forked processes."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest

from rsb_d2 import Trainer
from rsb_d2.checkpoint import find_newest_complete
from rsb_d2.engine.signals import SignalWatch
from tests.helpers.paths import CONFIGS, ROOT
from tests.helpers.runs.resumable_run import load, make_config

LONG = [
    *("MODEL.TIMM.NAME", "resnet10t", "SOLVER.IMS_PER_BATCH", "2"),
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


def handlers():
    return signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)


def run_forked(function):
    """Call a function in a forked process; returns the status that it ends with, negative for a
    signal."""
    child = os.fork()
    if child == 0:
        try:
            function()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_forked_process_has_the_handlers_from_before_and_the_training_keeps_its_own():
    before = handlers()
    watch = SignalWatch()
    watch.start()
    try:
        child = os.fork()
        if child == 0:
            os._exit(int(handlers() != before))
        assert os.waitpid(child, 0)[1] == 0
        assert handlers() != before
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & {signal.SIGTERM, signal.SIGINT}
    finally:
        watch.stop()
    assert handlers() == before


@pytest.mark.parametrize(
    "number, other", [(signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)]
)
def test_a_signal_in_the_first_moment_of_a_forked_process_is_its_own(number, other, monkeypatch):
    restore = SignalWatch._restore

    def signalled(watch, *args):
        os.kill(os.getpid(), number)  # before the process has its own handlers
        restore(watch, *args)

    def training():
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)
        watch = SignalWatch()
        watch.start()
        with watch.exit_at_once():  # where a signal ends the process
            monkeypatch.setattr(SignalWatch, "_restore", signalled)
            assert run_forked(lambda: None) == -number
            monkeypatch.undo()
            time.sleep(0.2)  # until a thread has read what there is
            assert watch.received is None
            os.kill(os.getpid(), other)
            time.sleep(10)

    assert run_forked(training) == 128 + other


def test_a_pool_that_is_ended_does_not_end_the_training():
    """As of the pool that reads Cityscapes in each evaluation; twice would end it at once."""

    def training():
        watch = SignalWatch()
        watch.start()
        with watch.exit_at_once():
            for _ in range(2):
                pool = multiprocessing.get_context("fork").Pool(2)
                assert pool.map(abs, [-1, 2]) == [1, 2]
                workers = list(pool._pool)
                pool.terminate()
                pool.join()
                assert not any(w.is_alive() for w in workers)
                time.sleep(0.6)  # a second signal of the same would count by now
        assert watch.received is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert watch.received == signal.SIGTERM
        watch.stop()

    assert run_forked(training) == 0
