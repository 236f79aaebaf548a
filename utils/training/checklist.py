"""The checks before a run starts: all problems are reported together."""

import math
import shutil
from collections.abc import Callable
from typing import TypeVar

from rich.table import Table
from rich.text import Text
from torch import nn

from sed_sr.data.benchmarks import Benchmark
from sed_sr.data.images import image_size
from sed_sr.models.train_step import TrainStep
from sed_sr.options.errors import UserError
from sed_sr.options.schema import Options
from sed_sr.utils.runtime.distributed import World
from sed_sr.utils.training.run_folder import RunFolder

Found = TypeVar("Found")

FLOAT32_BYTES = 4
ADAM_MOMENTS = 2  # of each parameter
PNG_BYTES_PER_PX = 2.0  # of a photograph


class Checklist:
    """Collects the results of checks instead of stopping at the first one that fails.

    Attributes:
        notes: what each passed check found, by its name.
        failures: the message of each failed check, by its name.
        not_checked: names of checks that depend on a failed one.
    """

    def __init__(self) -> None:
        self.notes: dict[str, str] = {}
        self.failures: dict[str, str] = {}
        self.not_checked: list[str] = []

    def check(self, name: str, find: Callable[[], Found], describe: Callable[[Found], str] = str) -> Found | None:
        """Call `find` and record a description of its result, or the UserError that it raises.

        Returns:
            The result of `find`; None if it failed.
        """
        try:
            result = find()
        except UserError as error:
            self.failures[name] = str(error)
            return None
        self.notes[name] = describe(result)
        return result

    def gather(self, world: World) -> None:
        """Merge the results of all processes, on each of them."""
        for notes, failures, not_checked in world.gather((self.notes, self.failures, self.not_checked)):
            self.notes = {**notes, **self.notes}
            self.failures = {**failures, **self.failures}
            self.not_checked = list(dict.fromkeys([*not_checked, *self.not_checked]))

    def raise_if_failed(self) -> None:
        """Raise a UserError with the messages of all failed checks, if there are any."""
        if self.failures:
            raise UserError("\n".join(self.failures.values()))

    def table(self) -> Table:
        """A row for each check."""
        table = Table(show_header=False)
        for _ in range(3):
            table.add_column(overflow="fold")
        for name, note in self.notes.items():
            table.add_row(Text(name), "ok", Text(note))
        for name, failure in self.failures.items():
            table.add_row(Text(name), Text("FAILED", "red"), Text(failure, "red"))
        for name in self.not_checked:
            table.add_row(Text(name), "?", "not checked because of the failures above")
        return table


def check_disk(
    options: Options,
    folder: RunFolder,
    train_step: TrainStep,
    benchmarks: list[Benchmark],
    *,
    steps_left: int,
) -> str:
    """Compare the free space with what the run will write: training states, weights and validation images.

    Returns:
        A description of both.

    Raises:
        UserError: there is too little space.
    """
    needed_bytes, parts = needed_space(options, folder, train_step, benchmarks, steps_left=steps_left)
    free_bytes = shutil.disk_usage(folder.existing_parent).free
    if needed_bytes > free_bytes:
        raise UserError(
            f"{folder.root} will grow by about {needed_bytes / 1e9:.3g} GB ({parts}), but only "
            f"{free_bytes / 1e9:.3g} GB are free there: free some space, or raise train.save_every_steps or "
            "validation.every_steps"
        )
    return f"{free_bytes / 1e9:.3g} GB free, about {needed_bytes / 1e9:.3g} GB needed"


def needed_space(
    options: Options,
    folder: RunFolder,
    train_step: TrainStep,
    benchmarks: list[Benchmark],
    *,
    steps_left: int,
) -> tuple[int, str]:
    """What the folder of a run will grow by at most, in bytes, and a description of its parts."""
    generator, discriminator = (_parameters(net) for net in (train_step.generator, train_step.discriminator))
    weights_bytes = FLOAT32_BYTES * generator * (1 if train_step.ema is None else 2)
    state_bytes = weights_bytes + FLOAT32_BYTES * (ADAM_MOMENTS * generator + (1 + ADAM_MOMENTS) * discriminator)
    saves = -(-steps_left // options.train.save_every_steps)
    best = options.validation.best_by is not None
    # One more than are kept: the oldest is deleted after the newest has been written.
    states = min(saves, options.train.keep_states) + best + (saves > 0)
    present_bytes = sum(path.stat().st_size for path in folder.saved_states())  # will be deleted
    # The latest weights count twice: the old file is replaced after the new one has been written.
    weights_files = steps_left // options.train.keep_weights + 2 * (saves > 0) + best
    discriminators_bytes = 2 * (saves > 0) * FLOAT32_BYTES * discriminator  # likewise
    images_bytes = sum(sr_bytes(benchmark, train_step.generator.scale) for benchmark in benchmarks)
    validations = -(-steps_left // options.validation.every_steps)
    weights_total_bytes = weights_files * weights_bytes + discriminators_bytes
    needed_bytes = states * state_bytes + weights_total_bytes + validations * images_bytes - present_bytes
    parts = (
        f"{states} training states of {state_bytes / 1e9:.3g} GB, {weights_total_bytes / 1e9:.3g} GB of weights, "
        f"images of {validations} validations of {images_bytes / 1e9:.3g} GB"
    )
    return max(needed_bytes, 0), parts


def sr_bytes(benchmark: Benchmark, scale: int) -> int:
    """Approximate size of the SR images of a benchmark."""
    return sum(round(PNG_BYTES_PER_PX * math.prod(image_size(image.lr)) * scale**2) for image in benchmark.images)


def _parameters(network: nn.Module | None) -> int:
    return sum(parameter.numel() for parameter in network.parameters()) if network is not None else 0
