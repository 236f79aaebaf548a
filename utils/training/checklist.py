"""Everything that can be known to be wrong before a run starts, told at once."""

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
from sed_sr.utils.weights import checkpoint

Found = TypeVar("Found")

NUMBER_BYTES = 4  # of a float32
MOMENTS = 2  # that Adam keeps of each parameter
PNG_BYTES_PER_PX = 2.0  # of a photograph


class Checklist:
    """What was looked at, and what was found to be right or wrong."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self.wrong: dict[str, str] = {}
        self.left: list[str] = []  # what was not looked at, because something that it needs is wrong

    def look(self, what: str, find: Callable[[], Found], say: Callable[[Found], str] = str) -> Found | None:
        """Call `find` and note what it returns, or the UserError that it raises, under the name `what`.

        Returns:
            What `find` returned; None where it failed.
        """
        try:
            result = find()
        except UserError as error:
            self.wrong[what] = str(error)
            return None
        self.found[what] = say(result)
        return result

    def share(self, world: World) -> None:
        """Let every process know what the others have found."""
        for found, wrong, left in world.gather((self.found, self.wrong, self.left)):
            self.found = {**found, **self.found}
            self.wrong = {**wrong, **self.wrong}
            self.left = list(dict.fromkeys([*left, *self.left]))

    def settle(self) -> None:
        """Raise a UserError that tells of everything that was wrong, where something was."""
        if self.wrong:
            raise UserError("\n".join(self.wrong.values()))

    def table(self) -> Table:
        """A row for each thing that was looked at."""
        table = Table(show_header=False)
        for _ in range(3):
            table.add_column(overflow="fold")
        for what, found in self.found.items():
            table.add_row(Text(what), "ok", Text(found))
        for what, problem in self.wrong.items():
            table.add_row(Text(what), Text("WRONG", "red"), Text(problem, "red"))
        for what in self.left:
            table.add_row(Text(what), "?", "not looked at, as long as the above is wrong")
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
        Both, in words.

    Raises:
        UserError: it will not fit.
    """
    generator, discriminator = (_parameters(net) for net in (train_step.generator, train_step.discriminator))
    weights_bytes = NUMBER_BYTES * generator * (1 if train_step.ema is None else 2)
    state_bytes = weights_bytes + NUMBER_BYTES * (MOMENTS * generator + (1 + MOMENTS) * discriminator)
    saves = -(-steps_left // options.train.save_every_steps)
    best = options.validation.best_by is not None
    # One state more than are kept, because the oldest is deleted after the newest was written.
    states = min(saves, options.train.keep_states) + best + (saves > 0)
    present_bytes = sum(path.stat().st_size for path in checkpoint.states(folder.states))  # they make room
    # Of the latest weights, the old file goes after the new one has come.
    weights_files = steps_left // options.train.keep_weights + 2 * (saves > 0) + best
    images_bytes = sum(_sr_bytes(benchmark, train_step.generator.scale) for benchmark in benchmarks)
    validations = -(-steps_left // options.validation.every_steps)
    needed_bytes = states * state_bytes + weights_files * weights_bytes + validations * images_bytes - present_bytes
    free_bytes = shutil.disk_usage(folder.ground).free
    if needed_bytes > free_bytes:
        raise UserError(
            f"{folder.root} will grow by about {needed_bytes / 1e9:.3g} GB ({states} training states of "
            f"{state_bytes / 1e9:.3g} GB, {weights_files} generator weights of {weights_bytes / 1e9:.3g} GB, images of "
            f"{validations} validations of {images_bytes / 1e9:.3g} GB), but {free_bytes / 1e9:.3g} GB are free "
            "there: free some, or raise train.save_every_steps or validation.every_steps"
        )
    return f"{free_bytes / 1e9:.3g} GB free, about {max(needed_bytes, 0) / 1e9:.3g} GB needed"


def _sr_bytes(benchmark: Benchmark, scale: int) -> int:
    """Of the SR images of one validation, roughly."""
    return sum(round(PNG_BYTES_PER_PX * math.prod(image_size(image.lr)) * scale**2) for image in benchmark.images)


def _parameters(network: nn.Module | None) -> int:
    return sum(parameter.numel() for parameter in network.parameters()) if network is not None else 0
