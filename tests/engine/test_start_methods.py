"""Whatever ends a process, those that it has started end with it, with each start method.

The start method of a program is set before anything else; ``forkserver`` is Python 3.14's.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from rsb_d2.checkpoint import find_newest_complete
from tests.helpers.kill_and_resume import SMALL
from tests.helpers.paths import CONFIGS, ROOT

MARK = "RSB_TEST_JOB"


class Job:
    """A program whose processes are known by a variable of their environment.

    Args:
        command (list): of the program.
        log (Path): gets what it writes.
        folder (Path): working directory.
        environment (dict[str, str]): in addition to this process's.
    """

    def __init__(self, command, log, folder, **environment):
        self._mark = uuid.uuid4().hex
        self._log = log
        with open(log, "w") as f:
            self.process = subprocess.Popen(
                list(map(str, command)),
                cwd=folder,
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment, MARK: self._mark},
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
        """The processes of the job that run, by their ids."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                is_ours = f"{MARK}={self._mark}\0".encode() in (folder / "environ").read_bytes()
                if is_ours and "\nState:\tZ" not in (folder / "status").read_text():
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    found[int(folder.name)] = command[:200]
        return found

    def wait_for(self, text):
        self.wait(lambda: text in self.text() or self.process.poll() is not None)
        assert text in self.text(), self.text()[-3000:]

    def end(self, number=None, *, group=False):
        """Send a signal, if one is given; returns the exit status when no process is left."""
        if number is not None:
            (os.killpg if group else os.kill)(self.process.pid, number)
        self.wait(lambda: self.process.poll() is not None)
        self.wait(lambda: not self.left())
        assert not self.left(), self.text()[-3000:]
        return self.process.returncode

    def wait(self, is_done, seconds=900):
        end = time.monotonic() + seconds
        while not is_done() and time.monotonic() < end:
            time.sleep(0.1)
        assert is_done(), (self.left(), self.text()[-3000:])


METHODS = ["fork", "spawn", "forkserver"]

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
        *(("forkserver", "error"), ("forkserver", "SIGKILL")),
        *(pytest.param(m, "SIGTERM", marks=pytest.mark.slow) for m in ("fork", "spawn")),
    ],
)
def test_workers_end_with_the_process_that_they_load_for(start, tmp_path, method, ending):
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


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ending", ["SIGTERM", "SIGKILL"])
def test_a_training_leaves_no_process_behind(start, run_folder, tmp_path, method, ending):
    output = tmp_path / "run"
    program = [ROOT / "train_net.py", "--config-file", CONFIGS / "frcnn_rsb_sample.yaml", *SMALL]
    opts = ["SOLVER.MAX_ITER", "100000", "TEST.EVAL_PERIOD", "0", "DATALOADER.NUM_WORKERS", "2"]
    opts += ["SOLVER.CHECKPOINT_PERIOD", "100000", "MODEL.DEVICE", "cpu", "OUTPUT_DIR", output]
    with start(method, *program, *opts, folder=run_folder) as job:
        job.wait_for("iter: 19")
        if ending == "SIGKILL":
            assert job.end(signal.SIGKILL) == -signal.SIGKILL
            return
        assert job.end(signal.SIGTERM, group=True) == 143
        assert find_newest_complete(str(output))
        assert "Traceback" not in job.text()
