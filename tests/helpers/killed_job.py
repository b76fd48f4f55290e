"""A job of torchrun's whose processes are killed from outside, and what is known of it there."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.helpers.kill_and_resume import SMALL
from tests.helpers.paths import CONFIGS, ROOT

TORCHRUN = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run"]
WAIT = 300  # seconds for anything to come


class Job:
    """``train_net.py --resume`` under torchrun.

    Args:
        folder (Path): of the sample data, ``datasets/rsb_sample``.
        output (str): name of its ``OUTPUT_DIR`` there.
        launcher (list[str]): options of torchrun.
        opts (list[str]): of the config.
        log (str): name of a file beside the folder; of it and not of another job.
    """

    def __init__(self, folder, output, launcher, opts, log=""):
        self.output = folder / output
        self._log = open(folder / (log or f"{output}.log"), "a")
        self.process = subprocess.Popen(
            [*TORCHRUN, *launcher, str(ROOT / "train_net.py"), "--resume"]
            + ["--config-file", str(CONFIGS / "frcnn_rsb_sample.yaml"), *SMALL]
            + ["OUTPUT_DIR", str(self.output), *opts],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def workers(self):
        """The processes that train, by rank."""
        found = {}
        for pid in _children(self.process.pid):
            try:
                words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            ranks = [int(word[5:]) for word in words if word.startswith(b"RANK=")]
            found.update(dict.fromkeys(ranks, pid))
        return found

    def wait(self):
        """The exit status."""
        status = self.process.wait(3 * WAIT)
        self._log.close()
        return status

    def text(self):
        return Path(self._log.name).read_text()

    def end(self):
        """Whatever state it is in."""
        for pid in [self.process.pid, *self.workers().values()]:
            kill(pid)
        self.process.wait(60)
        self._log.close()

    def is_writing(self):
        """Whether a checkpoint is half on the disk."""
        return any(self.output.glob("model_*.tmp"))

    def count(self, text):
        path = self.output / "log.txt"
        return path.read_text(errors="replace").count(text) if path.exists() else 0


def _children(pid):
    try:
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except OSError:
        return []


def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition, job):
    end = time.monotonic() + WAIT
    while not condition():
        assert job.process.poll() is None, job.text()[-3000:]
        assert time.monotonic() < end, job.text()[-3000:]
        time.sleep(0.005)


def kill_at_random(job, moments, seed):
    """Kill one process of each generation of a job.

    Args:
        job (Job): of two processes.
        moments (list[str]): when: at its ``"start"``, at ``"any"`` time of its training, while it
            writes a ``"checkpoint"`` or during an ``"evaluation"``; a random time after.
        seed (int): of the random times, and of which process it is.

    Returns:
        list[tuple]: of each kill the moment, the rank, and whether a checkpoint was half written.
    """
    draw, kills, before = random.Random(seed), [], set()
    for moment in moments:
        kills.append(_kill_one(job, moment, before, draw))
    return kills


def _kill_one(job, moment, before, draw):
    """Kill a process of a generation that is not of those before, which become as they are then."""
    wait_until(lambda: len(job.workers()) == 2 and not before & {*job.workers().values()}, job)
    trained, evaluated = job.count("Starting training from"), job.count("Start inference on")
    if moment == "start":
        time.sleep(draw.uniform(0, 8))
    else:
        wait_until(lambda: job.count("Starting training from") > trained, job)
    if moment == "any":
        time.sleep(draw.uniform(0, 4))
    elif moment == "checkpoint":
        wait_until(job.is_writing, job)
        time.sleep(draw.uniform(0, 0.1))
    elif moment == "evaluation":
        wait_until(lambda: job.count("Start inference on") > evaluated, job)
        time.sleep(draw.uniform(0, 0.5))
    workers = job.workers()
    before.clear()
    before.update(workers.values())
    rank = draw.choice(sorted(workers))
    writing = job.is_writing()
    assert kill(workers[rank]), job.text()[-3000:]
    return moment, rank, writing
