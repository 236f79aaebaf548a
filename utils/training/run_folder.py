"""The folder of one training run: what lies where."""

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path

from sed_sr.data.files import TEMPORARY_SUFFIX, nearest_existing
from sed_sr.options.errors import UserError
from sed_sr.utils.weights import checkpoint


class RunFolder:
    """`<out_root>/<name>`: the unit of work.

    options.yml                 the resolved option tree; `--opt` reads it back
    train.log, metrics.jsonl    the log for people, and for programs
    tensorboard/                event files
    images/                     validation images, one folder per step and benchmark
    training_set.txt            the HR images that it trains on
    generator_latest.pth        newest generator weights; generator_<step>.pth: those of some steps, and the newest too
    generator_best.pth          the best by the score of validation.best_by, where one is chosen
    states/                     the newest training states, to resume from, and that of the best weights
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.options = root / "options.yml"
        self.training_set = root / "training_set.txt"
        self.log = root / "train.log"
        self.metrics = root / "metrics.jsonl"
        self.tensorboard = root / "tensorboard"
        self.images = root / "images"
        self.states = root / "states"
        self.latest_weights = root / "generator_latest.pth"
        self.best_weights = root / "generator_best.pth"

    def weights(self, step: int) -> Path:
        """The generator weights of one save."""
        return checkpoint.weights_path(self.root, step)

    @property
    def ground(self) -> Path:
        """The folder itself, or the nearest one above it that is there."""
        return nearest_existing(self.root)

    def check(self, *, in_place: bool) -> None:
        """Raise a UserError where `claim` would refuse, as far as that can be seen without writing anything."""
        if not self.ground.is_dir() or not os.access(self.ground, os.W_OK | os.X_OK):
            raise UserError(f"the run's folder {self.root} cannot be used: {self.ground} is no folder to write to")
        if not in_place and checkpoint.states(self.states):
            raise UserError(
                f"{self.root} holds a run already; go on with it (--resume auto), or give this one another name "
                "(--set name=...), or remove that folder"
            )
        if not in_place and self.latest_weights.exists():
            raise UserError(
                f"{self.root} holds the weights of a run and no training state to go on from; give this run another "
                "name (--set name=...), or remove that folder"
            )

    def claim(self, *, in_place: bool, damaged: Sequence[Path] = ()) -> None:
        """Make the folder and keep other processes out of it until this one ends.

        What a killed process left half-written is removed.

        Args:
            in_place: go on with the run that the folder holds.
            damaged: training states in it that cannot be read; they get another ending, and are states no more.

        Raises:
            UserError: another process trains in it; or it holds the results of a run and `in_place` is not set:
                nothing is written over.
        """
        try:
            self.states.mkdir(parents=True, exist_ok=True)
            self._lock = (self.root / ".lock").open("w")
            # A lock of this process alone: one that a loader's workers inherit would outlive it.
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is training in {self.root}; give this run another name") from None
        except OSError as error:
            raise UserError(f"the run's folder {self.root} cannot be used ({error.strerror})") from None
        self.check(in_place=in_place)
        for path in damaged:
            path.rename(path.with_suffix(".damaged"))
        for leftover in self.root.rglob(f".*{TEMPORARY_SUFFIX}"):
            leftover.unlink(missing_ok=True)
