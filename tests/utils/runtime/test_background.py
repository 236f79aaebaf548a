"""A job beside the main thread: nothing waits for it before the end, and nothing that goes wrong in it is lost."""

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


def beside(background, job, work):
    with background:
        background.start(job)
        work()


def held_back(until: Event, done: list):
    """A job of two pieces, the first of which waits."""
    assert until.wait(timeout=10)
    done.append("first")
    yield
    done.append("second")


def broken():
    yield
    raise UserError("the disk is full")


def test_caller_goes_on_beside_a_job_and_does_not_get_past_the_end_without_it(background):
    until, done = Event(), []

    def work():
        assert not done
        assert not background.failed
        until.set()

    beside(background, held_back(until, done), work)
    assert done == ["first", "second"]


@pytest.mark.parametrize("settled", [True, False])
def test_what_goes_wrong_in_a_job_is_raised_once(background, warnings, settled):
    def work():
        while not background.failed:
            time.sleep(0.01)
        if settled:
            background.settle()

    with pytest.raises(UserError, match="the disk is full"):
        beside(background, broken(), work)
    assert not background.failed
    assert not warnings


def test_what_goes_wrong_in_a_job_is_told_where_something_else_ends_the_block(background, warnings):
    def work():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        beside(background, broken(), work)
    assert warnings == ["the disk is full"]


@pytest.mark.parametrize(("error", "left"), [(KeyboardInterrupt, []), (ZeroDivisionError, ["second"])])
def test_interrupt_gives_a_job_up_between_its_pieces_and_no_other_exception_does(background, error, left):
    until, done = Event(), []

    def work():
        Timer(0.2, until.set).start()  # when the end of the block is waiting
        raise error

    with pytest.raises(error):
        beside(background, held_back(until, done), work)
    assert done == ["first", *left]
