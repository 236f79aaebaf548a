"""Where a run begins: from random weights, from a generator's weights, or from a training state."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from options.schema import Options
from utils import checkpoint
from utils.errors import UserError
from utils.generator_weights import GeneratorWeights, generator_weights
from utils.run_folder import RunFolder

AUTO = "auto"
PSNR_ORIENTED = {"rrdb": "RRDB.pth", "swinir": "SwinIR.pth"}
ARCHITECTURE = ("generator", "discriminator")  # options that a state cannot go on without


@dataclass(frozen=True)
class Start:
    """What a run starts from, and how to tell it."""

    told: tuple[str, ...]
    path: Path | None = None
    weights: GeneratorWeights | None = None  # of the generator alone
    state: dict[str, Any] | None = None  # of the whole training: step, samples, train_step
    in_place: bool = False  # it goes on in its own folder

    @property
    def step(self) -> int:
        """Optimisation steps done before."""
        return self.state["step"] if self.state else 0

    @property
    def samples(self) -> int:
        """Training pairs seen before."""
        return self.state["samples"] if self.state else 0


def find_start(resume: str | None, options: Options, folder: RunFolder, path: Path | None) -> Start:
    """What `--resume` stands for.

    Args:
        resume: the argument: None, `auto`, or a file.
        path: the file that it names, downloaded if need be.

    Raises:
        UserError: the file cannot be read, or is a state of other networks than the options'.
    """
    if resume is None:
        told = "starts from random weights"
        published = PSNR_ORIENTED.get(options.generator.type)
        if options.discriminator is not None and published:
            told += f"; the paper starts from PSNR-oriented ones (--resume {options.paths.pretrained_root / published})"
        return Start((told,))
    newest = checkpoint.newest_state(folder.states)
    in_place = resume == AUTO
    if in_place:
        path = newest
        if path is None:
            return Start((f"{folder.root} has no training state yet: starts from random weights",), in_place=True)
    found = checkpoint.load(path)
    if not checkpoint.is_training_state(found):
        weights = generator_weights(found, path)
        return Start((f"starts from {path}: {weights.kind}",), path, weights=weights)
    if not in_place and path.resolve().parent == folder.states.resolve():
        in_place = True
        if path.resolve() != newest.resolve():
            raise UserError(
                f"{folder.root} has a newer state, {newest.name}, which would be written over; give the run that "
                f"branches off at {path.name} another name (--set name=...)"
            )
    return Start(
        (f"goes on from {path}: a training state at step {found['step']:,}", *_differences(found, options, path)),
        path,
        state=found,
        in_place=in_place,
    )


def _differences(state: dict[str, Any], options: Options, path: Path) -> list[str]:
    """A line for each option that is another one than in the state. Raises UserError where that cannot be."""
    before, now = (_leaves(tree) for tree in (state["options"], options.model_dump(mode="json")))
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    fixed = [key for key in changed if key.split(".")[0] in ARCHITECTURE]
    if fixed:
        key = fixed[0]
        raise UserError(
            f"{path} was trained with {key} {before.get(key)}, the options say {now.get(key)}; a training state goes "
            "on with the same networks only, but another run can start from its generator_latest.pth"
        )
    return [f"changed since then: {key} was {before.get(key)}, is {now.get(key)}" for key in changed]


def _leaves(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or not tree:
        return {path: tree}
    return {key: leaf for name in tree for key, leaf in _leaves(tree[name], f"{path}.{name}" if path else name).items()}
