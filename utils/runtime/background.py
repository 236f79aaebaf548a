"""A job on a thread beside the main one, whose errors are raised and whose end is waited for."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType


class BackgroundJob:
    """Runs at most one job at a time on its own thread. The end of the block waits for the running job.

    A job is an iterator that does its work between its items. If KeyboardInterrupt ends the block, the job is cancelled
    at its next item. In all other cases it runs to its end.

    Args:
        warn: called with the error of a job if another exception is already ending the block.
    """

    def __init__(self, *, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._job: Future[None] | None = None
        self._cancelled = False

    def start(self, job: Iterator[None]) -> None:
        """Start a job. `wait` must have been called for the one before."""
        assert self._job is None
        self._job = self._thread.submit(self._run, job)

    @property
    def failed(self) -> bool:
        """Whether `wait` would raise. Does not wait."""
        return self._error() is not None

    def _error(self) -> BaseException | None:
        return self._job.exception() if self._job is not None and self._job.done() else None

    def wait(self) -> None:
        """Wait for the running job, if there is one, and raise what it raised."""
        job, self._job = self._job, None
        if job is not None:
            job.result()

    def _run(self, job: Iterator[None]) -> None:
        for _ in job:
            if self._cancelled:
                return

    def __enter__(self) -> "BackgroundJob":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._cancelled = isinstance(error, KeyboardInterrupt)
        self._thread.shutdown()
        if error is None:
            self.wait()
        elif (failure := self._error()) is not None:
            self._warn(str(failure))
