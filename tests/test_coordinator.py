"""Coordinators: threads that stop together."""

from __future__ import annotations

import sys
import threading

import pytest

import jaxmeta
from jaxmeta import errors


def start(target, *args) -> threading.Thread:
    thread = threading.Thread(target=target, args=args, daemon=True, name="worker")
    thread.start()
    return thread


def test_threads_stop_together():
    coord = jaxmeta.Coordinator()
    threads = [start(coord.wait_for_stop) for _ in range(3)]
    assert not coord.should_stop()
    coord.request_stop()
    coord.join(threads)
    assert coord.should_stop()
    assert coord.joined
    assert not any(thread.is_alive() for thread in threads)


def test_registered_threads_are_waited_for():
    coord, released = jaxmeta.Coordinator(), threading.Event()
    thread = start(released.wait)
    coord.register_thread(thread)
    coord.request_stop()
    released.set()
    coord.join()
    assert not thread.is_alive()


def test_threads_that_end_by_themselves_need_no_request():
    coord = jaxmeta.Coordinator()
    coord.join([start(int)])
    assert not coord.should_stop()


def test_first_exception_is_raised_by_join():
    coord = jaxmeta.Coordinator()
    coord.request_stop(KeyError("first"))
    coord.request_stop(ValueError("second"))
    with pytest.raises(KeyError, match="first"):
        coord.join()
    with pytest.raises(KeyError, match="first"):
        coord.raise_requested_exception()


def test_exception_in_a_block_requests_the_stop():
    coord = jaxmeta.Coordinator()

    def work():
        with coord.stop_on_exception():
            raise ZeroDivisionError("here")

    with pytest.raises(ZeroDivisionError, match="here"):
        coord.join([start(work)])


def test_exception_may_be_given_as_exc_info():
    coord = jaxmeta.Coordinator()
    try:
        raise KeyError("this")
    except KeyError:
        coord.request_stop(sys.exc_info())
    with pytest.raises(KeyError, match="this"):
        coord.join()


def test_exhausted_input_is_a_clean_stop():
    coord = jaxmeta.Coordinator()
    coord.request_stop(errors.OutOfRangeError("no more"))
    coord.join()
    assert coord.should_stop()


def test_which_exceptions_are_clean_stops_may_be_said():
    coord = jaxmeta.Coordinator((KeyError,))
    coord.request_stop(KeyError("fine"))
    coord.join()
    other = jaxmeta.Coordinator((KeyError,))
    other.request_stop(errors.OutOfRangeError("not fine"))
    with pytest.raises(errors.OutOfRangeError):
        other.join()


def test_threads_that_go_on_are_named():
    coord, released = jaxmeta.Coordinator(), threading.Event()
    thread = start(released.wait)
    coord.request_stop()
    with pytest.raises(RuntimeError, match="threads that go on: worker"):
        coord.join([thread], stop_grace_period_secs=0.01)
    coord.join([thread], stop_grace_period_secs=0.01, ignore_live_threads=True)
    released.set()


def test_exception_after_join_is_raised_at_once():
    coord = jaxmeta.Coordinator()
    coord.request_stop()
    coord.join()
    with pytest.raises(KeyError, match="late"):
        coord.request_stop(KeyError("late"))


def test_cleared_coordinator_starts_anew():
    coord = jaxmeta.Coordinator()
    coord.request_stop(KeyError("old"))
    coord.clear_stop()
    assert not coord.should_stop()
    assert not coord.joined
    coord.raise_requested_exception()
    assert not coord.wait_for_stop(timeout=0.001)
