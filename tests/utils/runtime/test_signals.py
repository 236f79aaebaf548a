"""A signal is a wish, a second Ctrl-C a command; a launcher's repetition of the first one is neither."""

import signal
import time

import pytest

from sed_sr.data.workers import STOP_SIGNALS
from sed_sr.utils.runtime import signals
from sed_sr.utils.runtime.signals import wish_to_stop


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signal_is_a_wish_and_nothing_ends(number, capfd):
    with wish_to_stop(speak=True) as wish:
        assert wish() is None
        signal.raise_signal(number)
        assert wish() == number.name
    assert number.name in capfd.readouterr().err


def test_second_interrupt_ends_at_once_but_its_echo_does_not(monkeypatch):
    monkeypatch.setattr(signals, "ONE_KEYSTROKE_S", 0.2)
    with wish_to_stop(speak=False) as wish:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert wish() == "SIGINT"
        time.sleep(0.3)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
