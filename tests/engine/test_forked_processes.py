"""The signals of a training and of the processes that it forks.

Each training is a process of its own: where it fails it may be ended by a signal.
"""

import multiprocessing
import os
import signal
import time
import traceback

import pytest

from rsb_d2.engine.signals import SignalWatch


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
