"""Everything that can be known to be wrong before a run starts, told at once."""

import shutil
from collections.abc import Callable
from typing import TypeVar

from rich.table import Table
from rich.text import Text
from torch import nn

from models.train_step import TrainStep
from options.schema import Options
from utils import checkpoint
from utils.errors import UserError
from utils.run_folder import RunFolder

Found = TypeVar("Found")

NUMBER_BYTES = 4  # of a float32
MOMENTS = 2  # that Adam keeps of each parameter


class Checklist:
    """What was looked at, and what was found."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self.wrong: dict[str, str] = {}

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

    def settle(self) -> None:
        """Raise a UserError that tells of everything that was wrong, where something was."""
        if self.wrong:
            raise UserError("\n".join(self.wrong.values()))

    def table(self) -> Table:
        """A row for each thing that was looked at."""
        table = Table(show_header=False)
        table.add_column()
        table.add_column(overflow="fold")
        for what, found in self.found.items():
            table.add_row(what, Text(found))
        for what, problem in self.wrong.items():
            table.add_row(what, Text(problem, "red"))
        return table


def check_disk(options: Options, folder: RunFolder, train_step: TrainStep, *, steps_left: int) -> str:
    """Compare the free space with what the run will write at least: training states and weights.

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
    needed_bytes = states * state_bytes + (saves + 1 + best) * weights_bytes - present_bytes
    free_bytes = shutil.disk_usage(folder.ground).free
    if needed_bytes > free_bytes:
        raise UserError(
            f"{folder.root} will grow by {needed_bytes / 1e9:.3g} GB at least ({states} training states of "
            f"{state_bytes / 1e9:.3g} GB, {saves} generator weights of {weights_bytes / 1e9:.3g} GB), but "
            f"{free_bytes / 1e9:.3g} GB are free there: free some, or raise train.save_every_steps"
        )
    return f"{free_bytes / 1e9:.3g} GB free, at least {max(needed_bytes, 0) / 1e9:.3g} GB needed"


def _parameters(network: nn.Module | None) -> int:
    return sum(parameter.numel() for parameter in network.parameters()) if network is not None else 0
