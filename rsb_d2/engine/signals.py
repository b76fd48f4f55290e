"""SIGTERM and SIGINT: the first one ends the run after the step, the second one at once.

A cluster, a launcher and a terminal may all send the same signal to the same process, so signals
within half a second count as one.
"""

import functools
import os
import signal
import socket
import threading
import time
from contextlib import contextmanager
from typing import ContextManager, Iterator, Sequence

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SAME_SIGNAL_SECONDS = 0.5
# One of several processes may wait forever for one that has ended, and never reach its checkpoint.
_GRACE_SECONDS = 120.0


class Interrupted(BaseException):
    """Raised to end the run after a signal.

    Not an ``Exception``, which Detectron2 would log as an error.
    """

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


# The instance that handles the signals now.
_active: "SignalWatch | None" = None


class SignalWatch:
    """Records SIGTERM and SIGINT; a second one ends the process at once.

    The exit status is then 128 plus the signal's number, as a shell expects it. Outside of the main
    thread, where Python handles no signals, nothing is recorded.

    Args:
        num_processes (int): of the job. If there are several, each ends 120 seconds after the
            signal even if it hangs.

    Attributes:
        received (int or None): number of the first signal since :meth:`start`.
        received_by_any (int or None): number of the first signal that any process of the job has
            received, the same in all processes.
    """

    def __init__(self, num_processes: int = 1):
        self.received: int | None = None
        self._received_by_all: int | None = None
        self._is_alone = num_processes <= 1
        self._grace = None if self._is_alone else _GRACE_SECONDS
        self._before = {}
        self._raises = False
        self._exits = False

    def start(self) -> None:
        """Start handling the signals."""
        global _active
        if threading.current_thread() is not threading.main_thread():
            return
        self.received = self._received_by_all = None
        _prepare_forks()
        # Python calls handlers between two of its instructions, which may be seconds apart in
        # training; the system writes to this socket at once.
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._before_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        _active = self
        threading.Thread(target=self._watch, args=(self._reader,), daemon=True).start()

    def stop(self) -> None:
        """Restore the earlier handlers."""
        global _active
        if not self._before:
            return
        self._restore(self._before_fd)
        self._before, _active = {}, None
        self._writer.close()  # ends the thread

    def _restore(self, wakeup_fd: int) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup_fd)

    @property
    def received_by_any(self) -> int | None:
        return self.received if self._is_alone else self._received_by_all

    def set_received_by_all(self, received: Sequence[int | None]) -> None:
        """Set :attr:`received_by_any` from the values of :attr:`received` of all processes."""
        self._received_by_all = next(filter(None, received), None)

    def raise_at_once(self) -> ContextManager[None]:
        """Raise :class:`Interrupted` before or inside the block, as soon as a signal arrives."""
        return self._set("_raises")

    def exit_at_once(self) -> ContextManager[None]:
        """End the process inside the block, or raise :class:`Interrupted` before it."""
        return self._set("_exits")

    @contextmanager
    def _set(self, flag: str) -> Iterator[None]:
        setattr(self, flag, True)
        try:
            if self.received is not None:
                raise Interrupted(self.received)
            yield
        finally:
            setattr(self, flag, False)

    def _note(self, number: int, frame: object) -> None:
        if self.received is None:
            self.received = number
        if self._raises:
            self._raises = False
            raise Interrupted(number)

    def _watch(self, reader: socket.socket) -> None:
        first, time_of_first = None, 0.0
        with reader:
            while True:
                try:
                    number = reader.recv(1)
                except TimeoutError:
                    os._exit(128 + first)
                if not number:
                    return
                if number[0] not in _SIGNALS:
                    continue
                is_second = first and time.monotonic() - time_of_first > _SAME_SIGNAL_SECONDS
                if is_second or self._exits:
                    os._exit(128 + number[0])
                if first is None:
                    first, time_of_first = number[0], time.monotonic()
                    reader.settimeout(self._grace)


_held = threading.local()  # the signals that this thread had blocked before a fork


def _block_before_fork() -> None:
    if _active is not None:
        _held.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def _unblock() -> None:
    mask = vars(_held).pop("mask", None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@functools.cache
def _prepare_forks() -> None:
    """Register for the life of the process; the functions do nothing while no run is active."""
    os.register_at_fork(
        before=_block_before_fork, after_in_parent=_unblock, after_in_child=_restore_in_child
    )


def _restore_in_child() -> None:
    """Restore the default signal handling in a forked process.

    The child shares its parent's socket: a signal that ends a worker, such as one of the pool that
    reads Cityscapes, would look like a signal to the training. So signals are blocked during a
    fork until this function has run.
    """
    if _active is not None:
        _active._restore(-1)
    _unblock()
