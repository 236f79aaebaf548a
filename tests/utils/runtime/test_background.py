"""A background job runs beside the main thread, and its errors are never lost."""

import time
from threading import Event, Timer

import pytest

from sed_sr.options.errors import UserError
from sed_sr.utils.runtime.background import BackgroundJob


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def background(warnings):
    return BackgroundJob(warn=warnings.append)


def run_beside(background, job, work):
    with background:
        background.start(job)
        work()


def held_back(until: Event, done: list):
    """A job of two parts, the first of which waits."""
    assert until.wait(timeout=10)
    done.append("first")
    yield
    done.append("second")


def broken():
    yield
    raise UserError("the disk is full")


def test_caller_continues_while_a_job_runs_and_waits_for_it_at_the_end(background):
    until, done = Event(), []

    def work():
        assert not done
        assert not background.failed
        until.set()

    run_beside(background, held_back(until, done), work)
    assert done == ["first", "second"]


@pytest.mark.parametrize("waited", [True, False])
def test_error_of_a_job_is_raised_once(background, warnings, waited):
    def work():
        while not background.failed:
            time.sleep(0.01)
        if waited:
            background.wait()

    with pytest.raises(UserError, match="the disk is full"):
        run_beside(background, broken(), work)
    assert not background.failed
    assert not warnings


def test_error_of_a_job_is_a_warning_if_another_exception_ends_the_block(background, warnings):
    def work():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_beside(background, broken(), work)
    assert warnings == ["the disk is full"]


@pytest.mark.parametrize(("error", "remaining"), [(KeyboardInterrupt, []), (ZeroDivisionError, ["second"])])
def test_interrupt_cancels_a_job_between_its_parts_and_no_other_exception_does(background, error, remaining):
    until, done = Event(), []

    def work():
        Timer(0.2, until.set).start()  # while the end of the block waits
        raise error

    with pytest.raises(error):
        run_beside(background, held_back(until, done), work)
    assert done == ["first", *remaining]
