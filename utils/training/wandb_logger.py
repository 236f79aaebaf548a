"""The experiment logger of Weights & Biases (wandb), an optional package that is imported when it is used."""

import json
import math
import os
import sys
import time
import zlib
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from sed_sr.data.files import write_text
from sed_sr.options.errors import UserError, one_line
from sed_sr.utils.training.run_folder import RunFolder

PROJECT = "sed"  # unless WANDB_PROJECT is set
MIN_VERSION = (0, 30)  # before, `login` always asks for a key on a terminal
FINISH_TIMEOUT_S = 300.0  # of the last upload
SAFE_AFTER_S = 30.0  # wandb's process writes to its file every 15 s


def check_wandb() -> str:
    """Check that wandb can be imported and, unless it is offline, that there is a login. Nothing is sent.

    Returns:
        A description.

    Raises:
        UserError: a check has failed.
    """
    wandb = _import_wandb()
    try:
        mode = wandb.setup().settings.mode
        logged_in = mode != "online" or wandb.login(prompt=False, verify=False)
    except Exception as error:  # wandb reports wrong settings and keys in several ways
        raise UserError(f"wandb cannot be used ({_reason(error)})") from error
    if not logged_in:
        raise UserError(
            "wandb has no login: run `wandb login`, or set WANDB_MODE=offline, which writes files that `wandb sync` "
            "can upload later"
        )
    return f"{wandb.__version__}, {mode}"


class Wandb:
    """A run of wandb, in the run's folder. A run that continues in its folder continues its wandb run.

    wandb replaces no values and refuses steps of its own that go back. So the x axis is a metric, `step`, and a file
    records what was sent: of steps that a resumed run takes again, only values that differ are sent again. Values of
    metrics.jsonl that were never sent, such as those of a time without wandb, are sent at the start.

    wandb uploads in a process of its own, which tries again while there is no network. If wandb itself fails, a
    warning says so, and nothing more is sent.

    Args:
        config: the options, for wandb's tables.
        in_place: the run continues in its folder; otherwise it is a new run for wandb.
        warn: called with a warning.

    Raises:
        UserError: wandb cannot start the run.
    """

    def __init__(
        self, folder: RunFolder, *, name: str, config: dict[str, Any], in_place: bool, warn: Callable[[str], None]
    ) -> None:
        wandb = _import_wandb()
        self._picture, self._warn = wandb.Image, warn
        run_id, self._sent = _read(folder.wandb_sent) if in_place else (None, set())
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                dir=str(folder.root.resolve()),
                name=name,
                config=config,
                id=run_id,
                resume="allow",
                # The log of the run is train.log: what it prints does not pass through wandb.
                settings=wandb.Settings(console="off", quiet=True, finish_timeout=FINISH_TIMEOUT_S),
            )
        except Exception as error:  # no network, a key that is refused, an unwritable folder, ...
            raise UserError(
                f"wandb cannot start the run ({_reason(error)}); WANDB_MODE=offline writes files that "
                "`wandb sync` can upload later"
            ) from error
        self._works = not self._run.disabled
        self.about = f"wandb: {self._run.url or f'wandb sync {self._run.settings.sync_dir}'}"
        if not self._works:
            self.about = "wandb: disabled by its settings"
            return
        self._run.define_metric("*", step_metric="step")
        if run_id is None:
            write_text(folder.wandb_sent, json.dumps({"id": self._run.id}) + "\n")
        self._record = folder.wandb_sent.open("a", encoding="utf-8")
        self._unsafe: deque[tuple[float, str]] = deque()  # when it was sent, lines of the record
        self._send_missing(folder.metrics)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        # As in metrics.jsonl, there is no difference between infinity and NaN.
        self._send(step, {name: value if math.isfinite(value) else math.nan for name, value in values.items()})

    def image(self, name: str, step: int, image: np.ndarray) -> None:
        self._send(step, {name: zlib.crc32(image.tobytes())}, {name: image})

    def close(self) -> None:
        if self._run.disabled:
            return
        failed = sys.exc_info()[0] is not None  # an error is ending the run
        try:
            self._run.finish(exit_code=int(failed))
            self._record_sent(before=math.inf)
        except Exception as error:
            self._stop(error)
        self._record.close()

    def _send_missing(self, metrics: Path) -> None:
        for line in metrics.read_text("utf-8").splitlines():
            values = json.loads(line)
            kind, step = values.pop("kind"), values.pop("step")
            self.scalars(step, {f"{kind}/{name}": math.nan if v is None else v for name, v in values.items()})

    def _send(self, step: int, values: dict[str, float], images: dict[str, np.ndarray] | None = None) -> None:
        """Send what was not sent before.

        Args:
            values: for pictures, checksums.
        """
        lines = {name: json.dumps([step, name, value]) for name, value in values.items()}
        new = [name for name, line in lines.items() if line not in self._sent]
        if not new or not self._works:
            return
        try:
            row = {name: values[name] if images is None else self._picture(images[name]) for name in new}
            self._run.log({"step": step, **row})
            now = time.monotonic()
            self._unsafe.append((now, "".join(f"{lines[name]}\n" for name in new)))
            self._record_sent(before=now - SAFE_AFTER_S)
        except Exception as error:  # the disk, or wandb's process; training can do without it
            self._stop(error)

    def _record_sent(self, *, before: float) -> None:
        """Record what was sent before this time. The rest would be lost if wandb's process were killed now."""
        while self._unsafe and self._unsafe[0][0] < before:
            self._record.write(self._unsafe.popleft()[1])
        self._record.flush()

    def _stop(self, error: Exception) -> None:
        if not self._works:
            return
        self._works = False
        self._warn(f"wandb has failed ({_reason(error)}); the run goes on without it, and metrics.jsonl has all values")


def _import_wandb() -> ModuleType:
    try:
        import wandb  # here, since it is optional, and slow to import
    except ImportError as error:
        raise UserError(
            f"logging lists wandb, which cannot be imported ({_reason(error)}): pip install wandb"
        ) from error
    if tuple(map(int, wandb.__version__.split(".")[:2])) < MIN_VERSION:
        raise UserError(
            f"logging lists wandb, whose version {wandb.__version__} is too old: pip install --upgrade wandb"
        )
    return wandb


def _reason(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {' '.join(str(error).split())}")


def _read(record: Path) -> tuple[str | None, set[str]]:
    """The id of the wandb run, and what was sent to it."""
    if not record.exists():
        return None, set()
    first, *lines = record.read_text("utf-8").splitlines()
    return json.loads(first)["id"], set(lines)
