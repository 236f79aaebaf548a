"""The folder of one training run: what lies where."""

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

    def create(self) -> None:
        """Make the folder for a new run. Raises UserError where there is a run already: nothing is written over."""
        if self.log.exists() or self.states.exists():
            raise UserError(
                f"{self.root} holds a run already; go on with it (--resume auto), or give this one another name "
                "(--set name=...), or remove that folder"
            )
        self.open()

    def open(self) -> None:
        """Make what is missing of the folder."""
        try:
            self.states.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the run's folder {self.root} cannot be made ({error.strerror})") from None
