"""Files of generator weights: the network, run, step and scores that a file states, and the network built from it.

Files of this project state their network, run, step and scores. For files of other projects, the tensors tell the
network: one of this project's where the weights fit it, else one of spandrel's.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from sed_sr.models.build import generator_from_dict
from sed_sr.models.generator import Generator
from sed_sr.models.spandrel_generator import SpandrelGenerator
from sed_sr.options.errors import UserError
from sed_sr.utils.weights import checkpoint
from sed_sr.utils.weights.architecture import TYPES, detect_architecture
from sed_sr.utils.weights.formats import (
    RECOMPUTED_BUFFERS,
    GeneratorWeights,
    check_shapes,
    generator_weights,
    load_into,
)

MAX_RECOMPUTED_BYTES = 2**30  # of SwinIR's buffers that follow from the window size; SwinIR-M has 20 MB of them
SPANDREL = "spandrel"  # type of the generators that only the tensors tell
Name = Annotated[str, Field(pattern=r"^[^\p{C}]+$", max_length=255)]  # printable, because it is printed


class Record(BaseModel):
    """The metadata that a file of this project stores beside its tensors, as `checkpoint.save_generator` writes it."""

    model_config = ConfigDict(frozen=True, strict=True)

    options: dict[str, JsonValue]
    step: Annotated[int, Field(ge=0)] | None = None
    scale: Annotated[int, Field(ge=1)] | None = None
    scores: dict[Name, dict[Name, float]] = {}
    scored_step: Annotated[int, Field(ge=0)] | None = None


class RecordedTest(BaseModel):
    """The part of `test:` in the stored options that is used here."""

    paper_row: Name | None = None


class RecordedOptions(BaseModel):
    """The part of the stored options that is used here. The rest may come from another version of this project."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_+][A-Za-z0-9._+-]{0,199}$")]
    generator: dict[str, JsonValue]
    test: RecordedTest = RecordedTest()


@dataclass(frozen=True)
class GeneratorFile:
    """A file of generator weights, and what is known about them."""

    path: Path
    weights: GeneratorWeights
    name: str  # of the run, if the file states it, else of the file
    about: str  # description for users: architecture, format and origin of the weights
    generator_options: dict[str, Any] | None  # as the `generator:` of an option file; None for other networks
    scale: int | None  # None for an unknown network
    other: SpandrelGenerator | None = None  # the network, if it is not one of this project's
    step: int | None = None  # optimisation steps of the run
    scores: dict[str, dict[str, float]] = field(default_factory=dict)  # mean for each benchmark and metric
    scored_step: int | None = None  # the step at which the scores were computed
    paper_row: str | None = None  # the row of the paper's Table 1 that the run reproduces
    record: dict[str, Any] = field(default_factory=dict)  # all stored metadata, for conversion to another format


def open_generator_file(path: str | Path, *, entry: str | None = None) -> GeneratorFile:
    """Read a file of generator weights, in any of the known formats, with its metadata.

    Args:
        entry: `params` or `params_ema`; None: the running average if the file has one.

    Raises:
        UserError: the file cannot be read, holds no weights, or its metadata is invalid or contradicts its tensors.
    """
    path = Path(path)
    payload = checkpoint.load(path)
    weights = generator_weights(payload, path, entry=entry)
    if not isinstance(payload.get("options"), dict) or "generator" not in payload["options"]:
        network, scale = detect_architecture(weights.state) or (None, None)
        weights, other = _by_spandrel(weights, network, scale, path)
        return GeneratorFile(
            path,
            weights,
            name=path.stem,
            about=weights.kind,
            generator_options=network,
            scale=scale if other is None else other.scale,
            other=other,
        )
    record, options = _read_record(payload, path)
    network, scale = detect_architecture(weights.state, stated_scale=record.scale) or (None, record.scale)
    other = None
    if options.generator.get("type") == SPANDREL:
        weights, other = _by_spandrel(weights, network, scale, path)
    return GeneratorFile(
        path,
        weights,
        name=options.name,
        about="; ".join((_describe_weights(weights, options.generator), *_describe_run(options.name, record))),
        generator_options=_merge_options(network, options.generator, path),
        scale=scale if other is None else other.scale,
        other=other,
        step=record.step,
        scores=record.scores,
        scored_step=record.scored_step,
        paper_row=options.test.paper_row,
        record=record.model_dump(),
    )


def _by_spandrel(
    weights: GeneratorWeights, network: dict[str, Any] | None, scale: int | None, path: Path
) -> tuple[GeneratorWeights, SpandrelGenerator | None]:
    """Load weights by spandrel, unless they fit the network of this project that was detected.

    Returns:
        The weights with the name of the network found, and the network. None if they fit, or if spandrel cannot load
        them: `load_generator` tells why.
    """
    if network is not None and scale is not None:
        try:
            check_shapes(_outline(network, scale, path), weights, path)
        except UserError:
            pass
        else:
            return weights, None
    try:
        other = SpandrelGenerator(weights.original)
    except UserError:
        return weights, None
    return replace(weights, network=other.about), other


def load_generator(
    file: GeneratorFile, options: dict[str, Any] | None = None, *, scale: int | None = None
) -> Generator:
    """Build the generator of a file and load its weights.

    Args:
        options, scale: the `generator:` and the `scale:` of an option file, which the weights must fit; None: those of
            the file.

    Raises:
        UserError: neither this project nor spandrel knows the network, spandrel's fails in a trial, the weights do not
            fit the options, or the metadata is invalid. For this project's networks, memory is allocated only after
            the shapes are known to fit, whatever sizes the metadata states.
    """
    if options is not None and options["type"] == SPANDREL:
        options = None  # the network is that of the file
    if options is None and file.other is not None:
        if scale not in (None, file.other.scale):
            raise UserError(f"{file.path} holds {file.weights.kind}, but the options ask for x{scale}")
        try:
            file.other.check_upscaling()
        except UserError as error:
            raise UserError(f"{file.path}: {error}") from error
        return file.other
    options = file.generator_options if options is None else options
    scale = file.scale if scale is None else scale
    if options is None or scale is None:
        try:
            return SpandrelGenerator(file.weights.original)
        except UserError as error:
            raise UserError(f"{file.path} holds {file.weights.kind}: {error}") from error
    outline = _outline(options, scale, file.path)
    check_shapes(outline, file.weights, file.path)
    recomputed_bytes = sum(b.nbytes for name, b in outline.state_dict().items() if name.endswith(RECOMPUTED_BUFFERS))
    if recomputed_bytes > MAX_RECOMPUTED_BYTES:
        raise UserError(
            f"{file.path} describes attention windows whose masks would take {recomputed_bytes / 1e9:.3g} GB; "
            f"at most {MAX_RECOMPUTED_BYTES / 1e9:.3g} GB are accepted"
        )
    generator = generator_from_dict(options, scale=scale)
    load_into(generator, file.weights, file.path)
    return generator


def _outline(options: dict[str, Any], scale: int, path: Path) -> Generator:
    """The network of these options on the meta device, which takes no memory."""
    try:
        with torch.device("meta"):
            return generator_from_dict(options, scale=scale)
    except UserError as error:
        raise UserError(f"{path} describes a generator that is not valid: {error}") from None
    except RuntimeError:  # integer overflow in a size
        raise UserError(f"{path} describes a generator that is larger than any memory") from None


def _read_record(payload: dict, path: Path) -> tuple[Record, RecordedOptions]:
    try:
        record = Record.model_validate({key: payload[key] for key in Record.model_fields if key in payload})
        return record, RecordedOptions.model_validate(record.options, strict=True)
    except ValidationError as error:
        problem = error.errors(include_input=False)[0]
        raise UserError(f"{path} has invalid metadata: its {problem['loc'][0]}: {problem['msg']}") from None


def _describe_weights(weights: GeneratorWeights, stated: dict[str, Any]) -> str:
    if weights.network is not None:
        return weights.kind
    return f"{json.dumps(stated):.200}, from {weights.entry!r}"  # a custom generator, which tensors do not identify


def _describe_run(name: str, record: Record) -> list[str]:
    run = name if record.step is None else f"{name} at step {record.step:,}"
    benchmarks = [
        f"{benchmark} " + " ".join(f"{metric} {mean:.4g}" for metric, mean in means.items())
        for benchmark, means in record.scores.items()
    ]
    at = "" if record.scored_step in (None, record.step) else f" (at step {record.scored_step:,})"
    return [run, ", ".join(benchmarks) + at] if benchmarks else [run]


def _merge_options(network: dict[str, Any] | None, stated: dict[str, Any], path: Path) -> dict[str, Any] | None:
    """The generator's options from its tensors (`network`) and from the file's metadata (`stated`).

    Raises UserError if they differ.
    """
    if stated.get("type") == SPANDREL:
        return network
    if stated.get("type") not in TYPES:
        return stated  # a custom generator: only the metadata identifies it
    if network is None:
        return None
    for option, value in network.items():
        if option in stated and not _same(stated[option], value):
            raise UserError(
                f"{path} contradicts itself: its metadata states {option} {stated[option]!r:.60}, but its tensors have "
                f"{option} {_as_json(value)!r:.60}"
            )
    return {**network, **stated}


def _same(stated: Any, value: Any) -> bool:
    if isinstance(value, float):  # mlp_ratio, known from the shapes only up to a rounding to whole channels
        return isinstance(stated, int | float) and abs(stated - value) <= 0.5
    return stated == _as_json(value)


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
