"""A job in a session of its own, and the processes that it has started, as long as any is left."""

import contextlib
import os
import signal
import subprocess
import time
import uuid
from pathlib import Path

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
