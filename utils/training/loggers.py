"""Experiment loggers: what a run shows its curves and pictures in, beside its own log."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np


class ExperimentLogger(Protocol):
    """What `RunLog` needs of an experiment logger. `about` says where its user looks."""

    about: str

    def scalars(self, step: int, values: dict[str, float]) -> None: ...

    def image(self, name: str, step: int, image: np.ndarray) -> None: ...

    def close(self) -> None: ...


class BackgroundLogger:
    """Calls an experiment logger on a thread: a picture takes up to a second to encode.

    Nothing waits for the logger but `close`. What it raises is raised by a later call.
    """

    def __init__(self, logger: ExperimentLogger) -> None:
        self._logger = logger
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._queued: deque[Future[None]] = deque()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._queue(self._logger.scalars, step, values)

    def image(self, name: str, step: int, image: np.ndarray) -> None:
        self._queue(self._logger.image, name, step, image)

    def close(self) -> None:
        self._thread.shutdown()
        self._logger.close()
        for queued in self._queued:
            queued.result()

    def _queue(self, log: Callable[..., None], *what: object) -> None:
        self._queued.append(self._thread.submit(log, *what))
        while self._queued and self._queued[0].done():
            self._queued.popleft().result()


class TensorBoard:
    """Event files for TensorBoard.

    Args:
        step: optimisation steps done before; events of later ones are dropped, because they are logged again.
    """

    def __init__(self, folder: Path, *, step: int = 0) -> None:
        # Takes a second to import, and only the main process of a run that logs to it needs it.
        from torch.utils.tensorboard import SummaryWriter

        self.about = f"TensorBoard: tensorboard --logdir {folder}"
        self._events = SummaryWriter(str(folder), purge_step=step + 1)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def image(self, name: str, step: int, image: np.ndarray) -> None:
        self._events.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        self._events.close()
