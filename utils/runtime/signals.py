"""Stop signals: a run finishes its step and saves before it ends."""

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType, TracebackType

from sed_sr.data.workers import STOP_SIGNALS

ONE_KEYSTROKE_S = 0.5  # a launcher repeats the Ctrl-C that the terminal has sent to all processes


class StopSignal:
    """While its block runs, SIGTERM, SIGINT and SIGUSR1 do nothing but set `requested`.

    A second SIGINT raises KeyboardInterrupt at once.

    Args:
        announce: print a line to stderr when a signal arrives.

    Attributes:
        name: of the first signal that has arrived; None: none has.
    """

    def __init__(self, *, announce: bool) -> None:
        self.name: str | None = None
        self._announce, self._first_s = announce, 0.0  # when the first signal arrived

    @property
    def requested(self) -> bool:
        """Whether a signal has arrived."""
        return self.name is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now_s = time.monotonic()
        if not self.requested:
            self.name, self._first_s = signal.Signals(number).name, now_s
            if self._announce:
                again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
                # Not print(): a signal may arrive while another print() is running.
                text = f"\n{Path(sys.argv[0]).name}: {self.name}: finishing the step and saving{again}\n"
                os.write(2, text.encode())
        elif number == signal.SIGINT and now_s - self._first_s > ONE_KEYSTROKE_S:
            raise KeyboardInterrupt

    def __enter__(self) -> "StopSignal":
        self._handlers = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
