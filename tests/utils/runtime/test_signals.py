"""A signal requests a stop, a second Ctrl-C interrupts, and a launcher's repetition of the first one does nothing."""

import signal
import time

import pytest

from sed_sr.data.workers import STOP_SIGNALS
from sed_sr.utils.runtime import signals
from sed_sr.utils.runtime.signals import StopSignal


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signal_requests_a_stop(number, capfd):
    with StopSignal(announce=True) as stop:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested
        assert stop.name == number.name
    assert number.name in capfd.readouterr().err


def test_second_interrupt_is_raised_but_a_repetition_of_the_first_is_not(monkeypatch):
    monkeypatch.setattr(signals, "ONE_KEYSTROKE_S", 0.2)
    with StopSignal(announce=False) as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert stop.name == "SIGINT"
        time.sleep(0.3)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
