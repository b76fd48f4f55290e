"""Signals and the ends of processes: a checkpoint, an exit status, and no process left behind."""

import contextlib
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


class Job:
    """A program in a session of its own, by which its processes are known."""

    def __init__(self, command, log, folder, **environment):
        self._log = log
        with open(log, "w") as f:
            self.process = subprocess.Popen(
                list(map(str, command)),
                cwd=folder,
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
                stdout=f,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for pid in self.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def text(self):
        return self._log.read_text()

    def left(self):
        """The ids of the processes that run."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
                if int(session) == self.process.pid and state != "Z":
                    found.append(int(path.parent.name))
        return found

    def wait_for(self, text):
        self.wait(lambda: text in self.text() or self.process.poll() is not None)
        assert text in self.text(), self.text()[-3000:]

    def end(self, number=None, *, group=False):
        """Send a signal, if one is given; returns the exit status when no process is left."""
        if number is not None:
            (os.killpg if group else os.kill)(self.process.pid, number)
        self.wait(lambda: self.process.poll() is not None and not self.left())
        return self.process.returncode

    def wait(self, is_done, seconds=900):
        end = time.monotonic() + seconds
        while not is_done() and time.monotonic() < end:
            time.sleep(0.1)
        assert is_done(), (self.left(), self.text()[-3000:])


# Of the package the one module, as the package would take seconds to import. The loader belongs to
# the module, so it is there until Python ends. The pool and the other loader are of the user's own.
LOADING = f"""
import multiprocessing, sys
sys.path.insert(0, {str(ROOT / "rsb_d2" / "data")!r})
from torch.utils.data import DataLoader
from workers import WorkerLoader

if __name__ == "__main__":
    ending = sys.argv[1]
    multiprocessing.set_forkserver_preload(["torch.utils.data"])
    images = iter(WorkerLoader(range(10**6), batch_size=None, num_workers=2))
    assert [int(next(images)) for _ in range(4)] == [0, 1, 2, 3]
    if ending in ("normal", "error"):
        own = iter(DataLoader(range(10**6), num_workers=1))
        assert int(next(own)) == 0
    with multiprocessing.Pool(1) as pool:  # which it ends by SIGTERM
        assert pool.map(abs, [-1]) == [1]
    pool.join()
    print("running", flush=True)
    if ending == "error":
        raise RuntimeError("as meant")
    while ending != "normal":
        next(images)
"""

# Python imports it before the program.
SITECUSTOMIZE = """
import multiprocessing, os
multiprocessing.set_start_method(os.environ["START_METHOD"])
"""


@pytest.fixture
def start(tmp_path):
    """A function that starts a program with a start method."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITECUSTOMIZE)

    def start(method, program, *arguments, folder=tmp_path):
        command = [sys.executable, "-W", "ignore", program, *arguments]
        path = f"{site}:{ROOT}"
        environment = {"PYTHONPATH": path, "START_METHOD": method, "CUDA_VISIBLE_DEVICES": ""}
        return Job(command, tmp_path / "log", folder, **environment)

    return start


@pytest.mark.parametrize(
    "method, ending",
    [
        ("forkserver", "SIGKILL"),
        pytest.param("forkserver", "error", marks=pytest.mark.slow),
        *(pytest.param(m, "SIGTERM", marks=pytest.mark.slow) for m in ("fork", "spawn")),
    ],
)
def test_workers_end_with_their_parent_process(start, tmp_path, method, ending):
    (tmp_path / "loading.py").write_text(LOADING)
    with start(method, tmp_path / "loading.py", ending) as job:
        if ending in ("normal", "error"):
            assert job.end() == int(ending == "error")
            assert ("as meant" in job.text()) == (ending == "error")
            return
        job.wait_for("running")
        assert len(job.left()) >= 3
        number = getattr(signal, ending)
        assert job.end(number, group=ending == "SIGTERM") == -number


CONFIG = CONFIGS / "frcnn_rsb_sample.yaml"
LONG = [
    *("MODEL.TIMM.NAME", "resnet10t", "SOLVER.IMS_PER_BATCH", "2"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "SOLVER.MAX_ITER", "100000"),
    *("MODEL.FPN.OUT_CHANNELS", "32", "MODEL.ROI_BOX_HEAD.FC_DIM", "32"),
    *("SOLVER.CHECKPOINT_PERIOD", "100000", "TEST.EVAL_PERIOD", "0", "SOLVER.OPTIMIZER", "SGD"),
]


@pytest.mark.parametrize(
    "number, status",
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_a_signal_ends_the_run_with_a_checkpoint(run_folder, tmp_path, number, status):
    output = tmp_path / "run"
    command = [sys.executable, ROOT / "train_net.py", "--config-file", CONFIG, *LONG]
    command += ["DATALOADER.NUM_WORKERS", "2", "OUTPUT_DIR", output]
    with Job(command, tmp_path / "log", run_folder, CUDA_VISIBLE_DEVICES="") as job:
        job.wait_for("iter: 19")
        assert job.end(number, group=True) == status  # the workers get it as well, as from Ctrl-C
        log = job.text()
    assert "Traceback" not in log
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


@pytest.mark.parametrize(
    "number, other", [(signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)]
)
def test_a_signal_to_a_new_forked_process_does_not_reach_the_training(number, other, monkeypatch):
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
