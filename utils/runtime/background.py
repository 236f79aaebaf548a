"""What is done beside the main thread and never lost sight of: its errors are raised, its end is waited for."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType


class BackgroundJob:
    """At most one job at a time, on a thread of its own: a block at whose end the job under way is waited for.

    A job is an iterator, which works between its items. KeyboardInterrupt, when it ends the block, gives the job up at
    the next of them; everything else lets it come to its end.

    Args:
        warn: told what went wrong in a job where another exception is ending the block already.
    """

    def __init__(self, *, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._job = None  # its future
        self._given_up = False

    def start(self, job: Iterator[None]) -> None:
        """Begin a job, when the one before is settled."""
        assert self._job is None
        self._job = self._thread.submit(self._do, job)

    @property
    def failed(self) -> bool:
        """Whether there is something that `settle` would raise. Waits for nothing."""
        return self._job is not None and self._job.done() and self._job.exception() is not None

    def settle(self) -> None:
        """Wait for the job under way, if there is one, and raise what it raised."""
        job, self._job = self._job, None
        if job is not None:
            job.result()

    def _do(self, job: Iterator[None]) -> None:
        for _ in job:
            if self._given_up:
                return

    def __enter__(self) -> "BackgroundJob":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._given_up = isinstance(error, KeyboardInterrupt)
        self._thread.shutdown()
        if error is None:
            self.settle()
        elif self.failed:
            self._warn(str(self._job.exception()))
