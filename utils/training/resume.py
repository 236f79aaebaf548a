"""What a run starts from: random weights, generator weights, or a training state."""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sed_sr.data.image_folders import first_few
from sed_sr.options.errors import UserError
from sed_sr.options.schema import Options, SemanticExtractorOptions, SpandrelOptions
from sed_sr.utils.training.run_folder import RunFolder
from sed_sr.utils.weights import checkpoint
from sed_sr.utils.weights.formats import GeneratorWeights, generator_weights

AUTO = "auto"
PSNR_ORIENTED = {("rrdb", 4): "RRDB.pth", ("swinir", 4): "SwinIR.pth"}  # by type and scale
# Options that cannot change on resume; the discriminator depends on the semantic features.
ARCHITECTURE = ("scale.", "generator.", "discriminator.", "semantic_extractor.model", "semantic_extractor.layer")
RETRY_AFTER_S = 1.0
REQUIRED_KEYS = ("step", "options", "train_step", "loop")


@dataclass(frozen=True)
class Start:
    """What a run starts from.

    Attributes:
        messages: the lines of the log that say so.
        in_place: the run continues in its own folder.
        damaged: newer training states in that folder, which cannot be read.
        weights: of the generator, where nothing else is loaded.
        discriminator: file with its weights, likewise.
        train_step: the state of networks and optimisers.
    """

    messages: tuple[str, ...]
    path: Path | None = None
    step: int = 0  # optimisation steps done before
    loop: dict[str, Any] | None = None  # `TrainLoop.state_dict()`
    batch_size: int | None = None  # of a process, before
    in_place: bool = False
    damaged: tuple[Path, ...] = ()
    weights: GeneratorWeights | None = None
    discriminator: Path | None = None
    train_step: dict[str, Any] | None = None

    @classmethod
    def from_state(cls, state: dict[str, Any], messages: tuple[str, ...], path: Path, **more: Any) -> "Start":
        """A start from a training state."""
        return cls(
            messages,
            path,
            step=state["step"],
            loop=state["loop"],
            batch_size=state["options"]["dataloader"]["batch_size"],
            train_step=state["train_step"],
            **more,
        )

    def without_tensors(self) -> "Start":
        """A copy without weights, which is small enough to be sent to other processes."""
        return replace(self, weights=None, train_step=None)

    @property
    def samples(self) -> int:
        """Training pairs seen before."""
        return self.loop["samples"] if self.loop else 0

    @property
    def validated(self) -> int:
        """The last validated step."""
        return self.loop["validated"] if self.loop else 0


def file_to_start_from(resume: str | None, options: Options, folder: RunFolder) -> str | None:
    """The name or path of the file that a run with this `--resume` starts from; None if it needs none."""
    if resume not in (None, AUTO):
        return resume
    return None if _continues(resume, folder) else options.train.start_from


def discriminator_to_start_from(resume: str | None, options: Options, folder: RunFolder) -> str | None:
    """The same for the discriminator, unless `resume` turns out to be a training state, which holds one."""
    return None if _continues(resume, folder) else options.train.start_discriminator_from


def _continues(resume: str | None, folder: RunFolder) -> bool:
    return resume == AUTO and bool(folder.saved_states())


def find_start(
    resume: str | None,
    options: Options,
    folder: RunFolder,
    *,
    path: Path | None,
    discriminator: Path | None = None,
    processes: int,
) -> Start:
    """Find what `--resume` refers to.

    Args:
        resume: the value of the argument: None, `auto`, or a file.
        path, discriminator: of `file_to_start_from` and `discriminator_to_start_from`, after their downloads.
        processes: number of processes of this run.

    Raises:
        UserError: the file cannot be read, or its networks differ from those of the options.
    """
    auto = resume == AUTO
    if _continues(resume, folder):
        return _newest_readable(options, folder, processes)
    before = (f"{folder.root} has no training state yet",) if auto else ()
    if path is None:
        network = options.generator
        message = f"starts from {network.weights if isinstance(network, SpandrelOptions) else 'random weights'}"
        published = PSNR_ORIENTED.get((options.generator.type, options.scale))
        if options.discriminator is not None and published:
            example = published if options.degradation is None else "FILE, from train_*_psnr_real.yml"
            message += f"; the paper starts from PSNR-oriented ones (--set train.start_from={example})"
        return Start((*before, message), discriminator=discriminator)
    found = checkpoint.load(path)
    if auto or resume is None or not checkpoint.is_training_state(found):
        weights = generator_weights(found, path)
        # Only spandrel, which is not loaded yet, can name its networks.
        kind = weights.origin if isinstance(options.generator, SpandrelOptions) else weights.kind
        message = f"starts from {path}: {kind}"
        return Start((*before, message), path, weights=weights, discriminator=discriminator)
    in_place = path.resolve().parent == folder.states.resolve()
    newest = next(iter(folder.saved_states()), None)
    if in_place and newest is not None and path.resolve() != newest.resolve():
        raise UserError(
            f"{folder.root} has a newer state, {newest.name}, which would be overwritten; to branch off at "
            f"{path.name}, choose another name (--set name=...)"
        )
    return Start.from_state(found, _describe(found, path, options, processes), path, in_place=in_place)


def with_changed_images(start: Start, images: str) -> Start:
    """Add a message if the images of the training set have changed since the training state was written.

    Args:
        images: list of the training set's images, as in `RunFolder.training_set`.
    """
    if start.loop is None or start.path is None:
        return start
    try:
        before = set(RunFolder(start.path.parent.parent).training_set.read_text("utf-8").splitlines())
    except OSError:  # the state is not in a run folder
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
        "the run will not be bit-exact"
    )
    return replace(start, messages=(*start.messages, line))


def _newest_readable(options: Options, folder: RunFolder, processes: int) -> Start:
    damaged = {}
    for path in folder.saved_states():
        try:
            state = _load_with_retry(path)
        except UserError as error:
            damaged[path] = f"{str(error).partition(';')[0]}; this state is skipped"
            continue
        messages = (*damaged.values(), *_describe(state, path, options, processes))
        return Start.from_state(state, messages, path, in_place=True, damaged=tuple(damaged))
    raise UserError(
        f"none of the {len(damaged)} training states in {folder.states} can be read ({next(iter(damaged.values()))}); "
        "start another run (--set name=...), which can start from the weights of this one (--resume "
        f"{folder.latest_weights})"
    )


def _load_with_retry(path: Path) -> dict[str, Any]:
    """Load a state. Try twice, because a network file system may fail for a moment."""
    try:
        return checkpoint.load(path)
    except UserError:
        time.sleep(RETRY_AFTER_S)
        return checkpoint.load(path)


def _describe(state: dict[str, Any], path: Path, options: Options, processes: int) -> tuple[str, ...]:
    """The messages about a state. Raises a UserError if the run cannot resume from it."""
    missing = [key for key in REQUIRED_KEYS if key not in state]
    if missing:
        raise UserError(
            f"the training state {path} lacks {', '.join(missing)}: another version of this project wrote it"
        )
    lines = [f"resumes from {path}: a training state at step {state['step']:,}", *_differences(state, options, path)]
    if options.train.start_discriminator_from is not None:
        lines.append(f"the discriminator is that of the state, not {options.train.start_discriminator_from}")
    before = state["loop"]["processes"]
    if before != processes:
        lines.append(
            f"changed since then: there were {before} processes, now {processes}; the run resumes at the same position "
            "in the data, but will not be bit-exact"
        )
    return tuple(lines)


def _differences(state: dict[str, Any], options: Options, path: Path) -> list[str]:
    """A message for each option that differs from the state's. Raises a UserError if it is one of ARCHITECTURE."""
    # A state of an earlier version lacks newer options; these defaults are what it was trained with.
    defaults = {
        "logging": ["tensorboard"],
        "scale": 4,
        "generator": type(options.generator).model_construct(type=options.generator.type).model_dump(mode="json"),
        "semantic_extractor": SemanticExtractorOptions().model_dump(mode="json"),
    }
    before, now = _leaves(defaults) | _leaves(state["options"]), _leaves(options.model_dump(mode="json"))
    if options.dataloader.batch_size == AUTO:  # the run keeps the size that was found at its start
        for name in ("dataloader.batch_size", "train.accumulate_batches", "train.total_batch_size"):
            now[name] = before.get(name) if now[name] in (AUTO, None) else now[name]
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    fixed = [key for key in changed if f"{key}.".startswith(ARCHITECTURE) and key != "generator.weights"]
    if fixed:
        key = fixed[0]
        raise UserError(
            f"{path} was trained with {key} {_as_json(before, key)}, the options say {_as_json(now, key)}; a training "
            "state needs the same networks, but another run can start from its generator_latest.pth"
        )
    return [f"changed since then: {key} was {_as_json(before, key)}, is {_as_json(now, key)}" for key in changed]


def _as_json(leaves: dict[str, Any], key: str) -> str:
    return json.dumps(leaves.get(key))  # as in YAML: null, true


def _leaves(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or not tree:
        return {path: tree}
    return {key: leaf for name in tree for key, leaf in _leaves(tree[name], f"{path}.{name}" if path else name).items()}
