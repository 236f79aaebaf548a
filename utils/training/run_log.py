"""What a run tells: to the terminal, to files, to TensorBoard."""

import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sed_sr.data.files import write_text
from sed_sr.utils.training.run_folder import RunFolder


class SilentLog:
    """The log of a process that has nothing to tell, because another one does."""

    def info(self, text: str) -> None:
        """A line for people."""

    def warning(self, text: str) -> None:
        """A line that they should not overlook."""

    def scalars(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Figures of one step: a line of metrics.jsonl, and curves."""

    def image(self, name: str, step: int, image: np.ndarray) -> None:
        """A picture, (H, W, 3) uint8 RGB."""

    def flush(self) -> None:
        """See to it that the figures told are on the disk."""

    @contextmanager
    def progress(self, done: int, total: int) -> Iterator[Callable[[int], None]]:
        """A bar where the terminal can show one; the function that is handed out moves it to a step."""
        yield lambda step: None

    def close(self) -> None:
        """Flush and close the files."""


class RunLog(SilentLog):
    """The log of the main process: console, train.log, metrics.jsonl, TensorBoard.

    Figures and curves that a run made beyond the point from which it goes on are dropped: it makes them again. Lines
    may come from any thread. Nothing waits for TensorBoard; where it cannot write, a later call raises its OSError.

    Args:
        step: optimisation steps done before.
        validated: the last of them after which scores were made.
    """

    def __init__(self, folder: RunFolder, *, step: int = 0, validated: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only the main process needs it

        self.console = Console(highlight=False, soft_wrap=True)
        self._lines = logging.FileHandler(folder.log, encoding="utf-8")
        self._lines.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        _drop_figures_beyond(step, validated, folder.metrics)
        self._metrics = folder.metrics.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(folder.tensorboard), purge_step=step + 1)
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._shown = deque()  # futures of what the thread has been given

    def info(self, text: str) -> None:
        self.console.print(text, markup=False)
        self._line(logging.INFO, text)

    def warning(self, text: str) -> None:
        self.console.print(f"warning: {text}", style="yellow", markup=False)
        self._line(logging.WARNING, text)

    def scalars(self, kind: str, step: int, values: dict[str, float]) -> None:
        # JSON has no infinity and no NaN
        figures = {name: value if np.isfinite(value) else None for name, value in values.items()}
        self._metrics.write(json.dumps({"kind": kind, "step": step, **figures}) + "\n")
        self._metrics.flush()
        for name, value in values.items():
            self._show(self._events.add_scalar, f"{kind}/{name}", value, step)

    def image(self, name: str, step: int, image: np.ndarray) -> None:
        self._show(partial(self._events.add_image, dataformats="HWC"), name, image, step)

    def flush(self) -> None:
        os.fsync(self._metrics.fileno())

    @contextmanager
    def progress(self, done: int, total: int) -> Iterator[Callable[[int], None]]:
        columns = (TextColumn("step"), BarColumn(None), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bar:
            task = bar.add_task("", completed=done, total=total)
            yield lambda step: bar.update(task, completed=step)

    def close(self) -> None:
        self._lines.close()
        self._metrics.close()
        self._thread.shutdown()
        self._events.close()
        for shown in self._shown:
            shown.result()

    def _show(self, add: Callable[..., None], *what: object) -> None:
        # On a thread: pictures take up to a second to encode, and TensorBoard's own queue holds ten events.
        self._shown.append(self._thread.submit(add, *what))
        while self._shown and self._shown[0].done():
            self._shown.popleft().result()

    def _line(self, level: int, text: str) -> None:
        self._lines.handle(logging.LogRecord("train", level, "", 0, text, None, None))
        self._lines.flush()


def _drop_figures_beyond(step: int, validated: int, metrics: Path) -> None:
    if not metrics.exists():
        return
    kept = []
    for line in metrics.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            figures = json.loads(line)
        except ValueError:
            continue  # the process was killed while it wrote this line
        if figures["step"] <= (validated if figures["kind"].startswith("validation/") else step):
            kept.append(line)
    write_text(metrics, "".join(kept))
