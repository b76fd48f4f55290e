"""Signals and the processes that load images: the training alone ends on one."""

import os
import signal
import threading
from contextlib import contextmanager
from typing import Iterator


@contextmanager
def signals_wait() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_training(worker_id: int) -> None:
    """Go on until the training, which finishes its iteration first, ends its workers.

    A terminal and a cluster send signals to all processes of a job, the workers among them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_training, daemon=True).start()


def _end_with_training() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
