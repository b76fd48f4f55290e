"""SIGTERM and SIGINT, of a cluster or of Ctrl-C: the first is noted, the second obeyed at once.

A cluster, a launcher and a terminal may all send the same signal to the same process, so what
comes within half a second counts as one.
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
# Among several processes one may wait for another that is gone, and never come to its checkpoint.
_GRACE_SECONDS = 120.0


class Interrupted(BaseException):
    """A signal has asked for the end.

    No ``Exception``, as Detectron2 would log one as an error.

    Args:
        number (int): of the signal.
    """

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


# The one that has taken the signals over.
_active: "SignalWatch | None" = None


class SignalWatch:
    """Notes SIGTERM and SIGINT; a second one ends the process at once, whatever it does.

    The exit status is then 128 and the signal's number, as a shell expects it. Outside of the main
    thread, where Python has no signals, nothing is noted.

    Args:
        num_processes (int): of the job; of several, each ends 120 seconds after the signal even
            if it hangs.

    Attributes:
        received (int or None): number of the first signal since :meth:`start`.
        received_by_any (int or None): of the first that any process of the job is known to have
            received, the same in all; of a single process the first.
    """

    def __init__(self, num_processes: int = 1):
        self.received: int | None = None
        self._told: int | None = None
        self._is_alone = num_processes <= 1
        self._grace = None if self._is_alone else _GRACE_SECONDS
        self._before = {}
        self._raises = False
        self._exits = False

    def start(self) -> None:
        """Take the signals over."""
        global _active
        if threading.current_thread() is not threading.main_thread():
            return
        self.received = self._told = None
        _prepare_forks()
        # Python calls handlers between two of its own instructions, which may be seconds apart in
        # training; the system writes to this socket at once.
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._before_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        _active = self
        threading.Thread(target=self._watch, args=(self._reader,), daemon=True).start()

    def stop(self) -> None:
        """Give the signals back to whoever had them."""
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
        return self.received if self._is_alone else self._told

    def tell(self, received: Sequence[int | None]) -> None:
        """Say what all processes have in :attr:`received`, the same to each of them."""
        self._told = next(filter(None, received), None)

    def raised_at_once(self) -> ContextManager[None]:
        """Raise :class:`Interrupted` in the middle of what the block does, or before it."""
        return self._obeyed("_raises")

    def obeyed_at_once(self) -> ContextManager[None]:
        """End the process in the middle of what the block does, or raise before it."""
        return self._obeyed("_exits")

    @contextmanager
    def _obeyed(self, how: str) -> Iterator[None]:
        setattr(self, how, True)
        try:
            if self.received is not None:
                raise Interrupted(self.received)
            yield
        finally:
            setattr(self, how, False)

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


_held = threading.local()  # the signals that this thread had blocked before it forks


def _hold_before_fork() -> None:
    if _active is not None:
        _held.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def _let_through() -> None:
    mask = vars(_held).pop("mask", None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@functools.cache
def _prepare_forks() -> None:
    """Once in a process, for good; it does nothing while nobody has taken the signals over."""
    os.register_at_fork(
        before=_hold_before_fork, after_in_parent=_let_through, after_in_child=_give_back_in_child
    )


def _give_back_in_child() -> None:
    """A forked process has signals of its own, from its first moment on.

    The socket is its parent's, too: with it, a signal that ends a worker, such as of the pool that
    reads Cityscapes, would pass for one that asks for the training's end. So signals that come
    before this wait for it.
    """
    if _active is not None:
        _active._restore(-1)
    _let_through()
