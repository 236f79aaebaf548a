"""The folder of a training run: its files, and its lock."""

import fcntl
import os
import re
from collections.abc import Sequence
from pathlib import Path

from sed_sr.data.files import TEMPORARY_SUFFIX, nearest_existing
from sed_sr.options.errors import UserError

STATE_NAME = re.compile(r"state_(\d{9})\.pth")
WEIGHTS_NAME = re.compile(r"generator_(\d{9})\.pth")


class RunFolder:
    """`<out_root>/<name>`, everything that a run writes.

    options.yml                 all options of the run; can be given to `--opt`
    train.log                   the log
    metrics.jsonl               losses and scores, one JSON object per line
    tensorboard/                event files, where `logging` lists it
    wandb/, wandb_sent.jsonl    files of wandb, likewise; the id of the wandb run and what was sent to it
    images/                     validation images, one folder per step and benchmark
    training_set.txt            the HR images of the training set
    generator_latest.pth        the newest generator weights; generator_<step>.pth: the same, and those of some steps
    generator_best.pth          the weights with the best score, where validation.best_by is set
    discriminator_latest.pth    the newest discriminator weights, if there is a discriminator
    states/                     the newest training states, to resume from, and that of the best weights
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.options = root / "options.yml"
        self.training_set = root / "training_set.txt"
        self.log = root / "train.log"
        self.metrics = root / "metrics.jsonl"
        self.tensorboard = root / "tensorboard"
        self.wandb_sent = root / "wandb_sent.jsonl"
        self.images = root / "images"
        self.states = root / "states"
        self.latest_weights = root / "generator_latest.pth"
        self.latest_discriminator = root / "discriminator_latest.pth"
        self.best_weights = root / "generator_best.pth"

    def weights(self, step: int) -> Path:
        """The generator weights of one save."""
        return self.root / f"generator_{step:09d}.pth"

    def state(self, step: int) -> Path:
        """The training state of one save."""
        return self.states / f"state_{step:09d}.pth"

    def saved_states(self) -> list[Path]:
        """The training states, the newest first."""
        if not self.states.is_dir():
            return []
        # Nine digits sort like their numbers. Temporary files have other names.
        names = sorted(filter(STATE_NAME.fullmatch, os.listdir(self.states)), reverse=True)
        return [self.states / name for name in names]

    def delete_states(self, *, keep: int, best: Path | None = None) -> None:
        """Delete all training states but the newest `keep` (at least 1) and that of the best weights."""
        assert keep >= 1
        for path in self.saved_states()[keep:]:
            if path != best:
                path.unlink(missing_ok=True)

    def delete_weights(self, state: Path, *, kept_every_steps: int) -> None:
        """Delete the generator weights that were saved with a training state, unless they are to be kept.

        For each multiple of `kept_every_steps`, the first weights that were saved at or after it are kept.
        """
        step = int(state.stem.removeprefix("state_"))
        found = (WEIGHTS_NAME.fullmatch(path.name) for path in self.root.glob("generator_*.pth"))
        since = step - step % kept_every_steps
        if since == 0 or any(since <= int(name[1]) < step for name in found if name):
            self.weights(step).unlink(missing_ok=True)

    @property
    def existing_parent(self) -> Path:
        """The folder itself, or its nearest parent that exists."""
        return nearest_existing(self.root)

    def check(self, *, in_place: bool) -> None:
        """Raise the UserErrors of `lock` that can be known without writing anything."""
        if not self.existing_parent.is_dir() or not os.access(self.existing_parent, os.W_OK | os.X_OK):
            raise UserError(
                f"the run's folder {self.root} cannot be used: {self.existing_parent} is not a writable folder"
            )
        if not in_place and self.saved_states():
            raise UserError(
                f"{self.root} already contains a run; resume it (--resume auto), choose another name (--set name=...), "
                "or delete that folder"
            )
        if not in_place and self.latest_weights.exists():
            raise UserError(
                f"{self.root} contains the weights of a run but no training state to resume from; choose another name "
                "(--set name=...), or delete that folder"
            )

    def lock(self, *, in_place: bool, damaged: Sequence[Path] = ()) -> None:
        """Create the folder and lock it until this process ends. Delete temporary files of a killed process.

        Args:
            in_place: continue the run in the folder.
            damaged: unreadable training states in it; they are renamed to `.damaged`.

        Raises:
            UserError: another process trains in it, or it contains a run and `in_place` is not set.
        """
        try:
            self.states.mkdir(parents=True, exist_ok=True)
            self._lock_file = (self.root / ".lock").open("w")
            # Not flock: the workers of a loader inherit such a lock, and would keep it if this process is killed.
            fcntl.lockf(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is training in {self.root}; choose another name (--set name=...)"
            ) from None
        except OSError as error:
            raise UserError(f"the run's folder {self.root} cannot be used ({error.strerror})") from None
        self.check(in_place=in_place)
        for path in damaged:
            path.rename(path.with_suffix(".damaged"))
        for leftover in self.root.rglob(f".*{TEMPORARY_SUFFIX}"):
            leftover.unlink(missing_ok=True)
