"""The log of a run: terminal, files, experiment loggers."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

import numpy as np
from rich.console import Console
from tqdm import tqdm

from sed_sr.data.files import write_text
from sed_sr.utils.training.loggers import BackgroundLogger, ExperimentLogger
from sed_sr.utils.training.run_folder import RunFolder


class SilentLog:
    """The log of all processes but the main one: it writes nothing."""

    def add(self, logger: ExperimentLogger) -> None:
        """Log all values and pictures from now on to an experiment logger, too. Closing the log closes it."""

    def info(self, text: str) -> None:
        """Log a line."""

    def warning(self, text: str) -> None:
        """Log a warning."""

    def scalars(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Log values of a step: a line of metrics.jsonl, and curves named `kind/name`."""

    def image(self, name: str, step: int, image: np.ndarray) -> None:
        """Log a picture, (H, W, 3) uint8 RGB, to the experiment loggers."""

    def flush(self) -> None:
        """Flush metrics.jsonl to the disk."""

    @contextmanager
    def progress(self, done: int, total: int) -> Iterator[Callable[[int], object]]:
        """Show a progress bar while the block runs. Yields a function that sets its step."""
        yield lambda step: None

    def close(self) -> None:
        """Flush and close the files."""


class RunLog(SilentLog):
    """The log of the main process.

    Values that a run logged after the step from which it resumes are dropped, because it logs them again. Lines may
    come from any thread. Nothing waits for an experiment logger; what it raises, a later call raises.

    Args:
        step: optimisation steps done before.
        validated: the last validated step.
    """

    def __init__(self, folder: RunFolder, *, step: int = 0, validated: int = 0) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self._lines = folder.log.open("ab", buffering=0)  # a line is one write, from whatever thread
        _drop_values_after(step, validated, folder.metrics)
        self._metrics = folder.metrics.open("a", encoding="utf-8")
        self._loggers: list[BackgroundLogger] = []

    def add(self, logger: ExperimentLogger) -> None:
        self._loggers.append(BackgroundLogger(logger))

    def info(self, text: str) -> None:
        self._print(text)
        self._write("INFO", text)

    def warning(self, text: str) -> None:
        self._print(f"warning: {text}", style="yellow")
        self._write("WARNING", text)

    def scalars(self, kind: str, step: int, values: dict[str, float]) -> None:
        # JSON has no infinity and no NaN
        finite = {name: value if np.isfinite(value) else None for name, value in values.items()}
        self._metrics.write(json.dumps({"kind": kind, "step": step, **finite}) + "\n")
        self._metrics.flush()
        named = {f"{kind}/{name}": value for name, value in values.items()}
        for logger in self._loggers:
            logger.scalars(step, named)

    def image(self, name: str, step: int, image: np.ndarray) -> None:
        for logger in self._loggers:
            logger.image(name, step, image)

    def flush(self) -> None:
        os.fsync(self._metrics.fileno())

    @contextmanager
    def progress(self, done: int, total: int) -> Iterator[Callable[[int], object]]:
        # disable=None: only on a terminal
        with tqdm(desc="step", initial=done, total=total, leave=False, dynamic_ncols=True, disable=None) as bar:
            yield lambda step: bar.update(step - bar.n)

    def close(self) -> None:
        with ExitStack() as last_first:  # closes all, also if one fails
            last_first.callback(self._lines.close)
            last_first.callback(self._metrics.close)
            for logger in self._loggers:
                last_first.callback(logger.close)

    def _print(self, text: str, *, style: str | None = None) -> None:
        with tqdm.external_write_mode():  # hides the progress bar meanwhile
            self.console.print(text, style=style, markup=False)

    def _write(self, level: str, text: str) -> None:
        time = datetime.now().isoformat(sep=" ", timespec="milliseconds")
        self._lines.write(f"{time} {level} {text}\n".encode())


def _drop_values_after(step: int, validated: int, metrics: Path) -> None:
    if not metrics.exists():
        return
    kept = []
    for line in metrics.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            values = json.loads(line)
        except ValueError:
            continue  # the process was killed while it wrote this line
        if values["step"] <= (validated if values["kind"].startswith("validation/") else step):
            kept.append(line)
    write_text(metrics, "".join(kept))
