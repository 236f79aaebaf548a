"""The folder of one training run: what lies where."""

import fcntl
from pathlib import Path

from utils.errors import UserError


class RunFolder:
    """`<out_root>/<name>`: the unit of work.

    options.yml                 the resolved option tree; `--opt` reads it back
    train.log, metrics.jsonl    the log for people, and for programs
    tensorboard/                event files
    images/                     validation images, one folder per step and benchmark
    generator_latest.pth        newest generator weights; generator_<step>.pth: those of each save
    states/                     the newest training states, to resume from
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.options = root / "options.yml"
        self.log = root / "train.log"
        self.metrics = root / "metrics.jsonl"
        self.tensorboard = root / "tensorboard"
        self.images = root / "images"
        self.states = root / "states"
        self.latest_weights = root / "generator_latest.pth"

    def weights(self, step: int) -> Path:
        """The generator weights of one save."""
        return self.root / f"generator_{step:09d}.pth"

    def claim(self, *, in_place: bool) -> None:
        """Make the folder and keep other processes out of it until this one ends.

        Args:
            in_place: go on with the run that the folder holds.

        Raises:
            UserError: another process trains in it; or it holds the results of a run and `in_place` is not set:
                nothing is written over.
        """
        try:
            self.states.mkdir(parents=True, exist_ok=True)
            self._lock = (self.root / ".lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is training in {self.root}; give this run another name") from None
        except OSError as error:
            raise UserError(f"the run's folder {self.root} cannot be used ({error.strerror})") from None
        if not in_place and (self.latest_weights.exists() or any(self.states.iterdir())):
            raise UserError(
                f"{self.root} holds a run already; go on with it (--resume auto), or give this one another name "
                "(--set name=...), or remove that folder"
            )
