"""Where a run begins: from random weights, from a generator's weights, or from a training state."""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sed_sr.data.image_folders import first_few
from sed_sr.options.errors import UserError
from sed_sr.options.schema import Options, SemanticExtractorOptions
from sed_sr.utils.training.run_folder import RunFolder
from sed_sr.utils.weights import checkpoint
from sed_sr.utils.weights.formats import GeneratorWeights, generator_weights

AUTO = "auto"
PSNR_ORIENTED = {"rrdb": "RRDB.pth", "swinir": "SwinIR.pth"}
# Options that a state cannot go on without: the semantic maps have to fit the discriminator.
ARCHITECTURE = ("generator.", "discriminator.", "semantic_extractor.model", "semantic_extractor.layer")
READ_AGAIN_AFTER_S = 1.0
NEEDED = ("step", "options", "train_step", "loop")


@dataclass(frozen=True)
class Start:
    """What a run starts from, and how to tell it."""

    told: tuple[str, ...]
    path: Path | None = None
    step: int = 0  # optimisation steps done before
    loop: dict[str, Any] | None = None  # where the training loop stood
    batch_size: int | None = None  # of a process, before
    in_place: bool = False  # it goes on in its own folder
    damaged: tuple[Path, ...] = ()  # newer states in that folder, which cannot be read
    weights: GeneratorWeights | None = None  # of the generator alone
    train_step: dict[str, Any] | None = None  # of the whole training

    @classmethod
    def from_state(cls, state: dict[str, Any], told: tuple[str, ...], path: Path, **more: Any) -> "Start":
        """A start from a training state."""
        return cls(
            told,
            path,
            step=state["step"],
            loop=state["loop"],
            batch_size=state["options"]["dataloader"]["batch_size"],
            train_step=state["train_step"],
            **more,
        )

    def without_tensors(self) -> "Start":
        """What is left to know once the networks have their weights."""
        return replace(self, weights=None, train_step=None)

    @property
    def samples(self) -> int:
        """Training pairs seen before."""
        return self.loop["samples"] if self.loop else 0

    @property
    def validated(self) -> int:
        """The last step after which there are scores."""
        return self.loop["validated"] if self.loop else 0


def file_to_start_from(resume: str | None, options: Options, folder: RunFolder) -> str | None:
    """The file, by its name or path, that a run with this `--resume` needs for its start, if any."""
    if resume not in (None, AUTO):
        return resume
    goes_on = resume == AUTO and checkpoint.states(folder.states)
    return None if goes_on else options.train.start_from


def find_start(resume: str | None, options: Options, folder: RunFolder, *, path: Path | None, processes: int) -> Start:
    """What `--resume` stands for.

    Args:
        resume: the argument: None, `auto`, or a file.
        path: of the file to start from, downloaded if need be.
        processes: of the run that starts.

    Raises:
        UserError: the file cannot be read, or is a state of other networks than the options'.
    """
    auto = resume == AUTO
    if auto and checkpoint.states(folder.states):
        return _newest_good(options, folder, processes)
    before = (f"{folder.root} has no training state yet",) if auto else ()
    if path is None:
        told = "starts from random weights"
        published = PSNR_ORIENTED.get(options.generator.type)
        if options.discriminator is not None and published:
            example = published if options.degradation is None else "FILE, from train_*_psnr_real.yml"
            told += f"; the paper starts from PSNR-oriented ones (--set train.start_from={example})"
        return Start((*before, told))
    found = checkpoint.load(path)
    if auto or resume is None or not checkpoint.is_training_state(found):
        weights = generator_weights(found, path)
        return Start((*before, f"starts from {path}: {weights.kind}"), path, weights=weights)
    in_place = path.resolve().parent == folder.states.resolve()
    newest = next(iter(checkpoint.states(folder.states)), None)
    if in_place and path.resolve() != newest.resolve():
        raise UserError(
            f"{folder.root} has a newer state, {newest.name}, which would be written over; give the run that "
            f"branches off at {path.name} another name (--set name=...)"
        )
    return Start.from_state(found, _about(found, path, options, processes), path, in_place=in_place)


def with_changed_images(start: Start, images: str) -> Start:
    """A start that tells, where it is from a training state, of images that came to the training set or left it.

    Args:
        images: of the training set, as the run's folder keeps them (`RunFolder.training_set`).
    """
    if start.loop is None:
        return start
    try:
        before = set(RunFolder(start.path.parent.parent).training_set.read_text("utf-8").splitlines())
    except OSError:  # the state lies elsewhere, alone
        return start
    now = set(images.splitlines())
    changes = [
        f"{len(names):,} {what} ({first_few(sorted(names))})"
        for what, names in (("added", now - before), ("removed", before - now))
        if names
    ]
    if not changes:
        return start
    line = (
        f"changed since then: the training set had {len(before):,} HR images, has {len(now):,}: {', '.join(changes)}; "
        "the run does not go on bit for bit as it would have"
    )
    return replace(start, told=(*start.told, line))


def _newest_good(options: Options, folder: RunFolder, processes: int) -> Start:
    damaged = {}
    for path in checkpoint.states(folder.states):
        try:
            state = _read_twice(path)
        except UserError as error:
            damaged[path] = f"{str(error).partition(';')[0]}; this state is passed over"
            continue
        told = (*damaged.values(), *_about(state, path, options, processes))
        return Start.from_state(state, told, path, in_place=True, damaged=tuple(damaged))
    raise UserError(
        f"none of the {len(damaged)} training states in {folder.states} can be read ({next(iter(damaged.values()))}); "
        "start another run (--set name=...), which can begin with the weights of this one (--resume "
        f"{folder.latest_weights})"
    )


def _read_twice(path: Path) -> dict[str, Any]:
    """A state; where it cannot be read, another try: a network file system may fail for a moment, damage stays."""
    try:
        return checkpoint.load(path)
    except UserError:
        time.sleep(READ_AGAIN_AFTER_S)
        return checkpoint.load(path)


def _about(state: dict[str, Any], path: Path, options: Options, processes: int) -> tuple[str, ...]:
    """The lines that tell of a state. Raises UserError where the run cannot go on from it."""
    missing = [key for key in NEEDED if key not in state]
    if missing:
        raise UserError(
            f"the training state {path} lacks {', '.join(missing)}: another version of this project wrote it"
        )
    lines = [f"goes on from {path}: a training state at step {state['step']:,}", *_differences(state, options, path)]
    before = state["loop"]["processes"]
    if before != processes:
        lines.append(
            f"changed since then: there were {before} processes, now {processes}; the run goes on at the same place in "
            "the data, but not bit for bit as it would have"
        )
    return tuple(lines)


def _differences(state: dict[str, Any], options: Options, path: Path) -> list[str]:
    """A line for each option that is another one than in the state. Raises UserError where that cannot be."""
    # An option of a network that was added since then: what there was before is its default.
    defaults = {
        "generator": type(options.generator)(type=options.generator.type).model_dump(mode="json"),
        "semantic_extractor": SemanticExtractorOptions().model_dump(mode="json"),
    }
    before, now = _leaves(defaults) | _leaves(state["options"]), _leaves(options.model_dump(mode="json"))
    if options.dataloader.batch_size == AUTO:  # it stays what was found when the run began, and so does what follows
        for name in ("dataloader.batch_size", "train.accumulate_batches", "train.total_batch_size"):
            now[name] = before.get(name) if now[name] in (AUTO, None) else now[name]
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    fixed = [key for key in changed if f"{key}.".startswith(ARCHITECTURE)]
    if fixed:
        key = fixed[0]
        raise UserError(
            f"{path} was trained with {key} {_as_json(before, key)}, the options say {_as_json(now, key)}; a training "
            "state goes on with the same networks only, but another run can start from its generator_latest.pth"
        )
    return [f"changed since then: {key} was {_as_json(before, key)}, is {_as_json(now, key)}" for key in changed]


def _as_json(leaves: dict[str, Any], key: str) -> str:
    return json.dumps(leaves.get(key))  # as YAML has it, too: null, true


def _leaves(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or not tree:
        return {path: tree}
    return {key: leaf for name in tree for key, leaf in _leaves(tree[name], f"{path}.{name}" if path else name).items()}
