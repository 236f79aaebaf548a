"""Being asked to stop: a signal becomes a wish, which a run fulfils when a step is complete."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sed_sr.data.workers import STOP_SIGNALS

ONE_KEYSTROKE_S = 0.5  # a launcher repeats the Ctrl-C that the terminal has sent to everybody


@contextmanager
def wish_to_stop(*, speak: bool) -> Iterator[Callable[[], str | None]]:
    """While the block runs, SIGTERM, SIGINT and SIGUSR1 do nothing but set what the function handed out returns.

    A second SIGINT raises KeyboardInterrupt at once.

    Args:
        speak: tell on stderr that a signal has arrived.

    Returns:
        A function: the name of the first signal that has arrived, or None.
    """
    wished, first_s = None, None

    def note(number: int, _: object) -> None:
        nonlocal wished, first_s
        now_s = time.monotonic()
        if wished is None:
            wished, first_s = signal.Signals(number).name, now_s
            if speak:
                again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
                # Not print(): a signal may arrive in the midst of one.
                text = f"\n{Path(sys.argv[0]).name}: {wished}: finishing the step and saving{again}\n"
                os.write(2, text.encode())
        elif number == signal.SIGINT and now_s - first_s > ONE_KEYSTROKE_S:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, note) for number in STOP_SIGNALS}
    try:
        yield lambda: wished
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
