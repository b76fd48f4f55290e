"""The signals of a training and of the processes that it forks."""

import multiprocessing
import os
import signal
import time

from rsb_d2.engine.signals import SignalWatch


def handlers():
    return signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)


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
    finally:
        watch.stop()
    assert handlers() == before


def test_a_pool_that_is_ended_does_not_end_the_training():
    """As of the pool that reads Cityscapes in each evaluation; twice would end it at once."""
    watch = SignalWatch()
    watch.start()
    try:
        with watch.obeyed_at_once():  # where a signal ends the process
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
    finally:
        watch.stop()
