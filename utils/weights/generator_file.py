"""Files of generator weights that know what they are: network, run, step, scores; and what is known of other files."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from sed_sr.options.errors import UserError
from sed_sr.utils.weights import checkpoint
from sed_sr.utils.weights.architecture import TYPES, detect_architecture, traits_of
from sed_sr.utils.weights.formats import GeneratorWeights, generator_weights

Name = Annotated[str, Field(pattern=r"^[^\p{C}]+$", max_length=255)]  # printable, as it will be printed


class Record(BaseModel):
    """What a file of this project says beside its tensors (`checkpoint.save_generator` tells of the fields)."""

    model_config = ConfigDict(frozen=True, strict=True)

    options: dict[str, JsonValue]
    step: Annotated[int, Field(ge=0)] | None = None
    scale: Annotated[int, Field(ge=1)] | None = None
    scores: dict[Name, dict[Name, float]] = {}
    scored_step: Annotated[int, Field(ge=0)] | None = None


class RecordedTest(BaseModel):
    """What counts here of `test:` in the recorded options."""

    paper_row: Name | None = None


class RecordedOptions(BaseModel):
    """What counts here of the recorded options. Those of another version of this project may differ in the rest."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_+][A-Za-z0-9._+-]{0,199}$")]
    generator: dict[str, JsonValue]
    test: RecordedTest = RecordedTest()


@dataclass(frozen=True)
class GeneratorFile:
    """A file of a generator's weights, and what is known of them."""

    path: Path
    weights: GeneratorWeights
    name: str  # of the run that made it, where the file says so, else of the file
    about: str  # for people: what the weights are of, and where they come from
    generator_options: dict[str, Any] | None  # the `generator:` of an option file; None: no network of this project
    scale: int | None
    step: int | None = None  # optimisation steps behind it
    scores: dict[str, dict[str, float]] = field(default_factory=dict)  # means by benchmark and metric
    scored_step: int | None = None  # after which the scores were made
    paper_row: str | None = None  # of the paper's Table 1 that the run reproduces
    record: dict[str, Any] = field(default_factory=dict)  # as it goes along into another format


def open_generator_file(path: str | Path, *, entry: str | None = None) -> GeneratorFile:
    """Read a file of a generator's weights, in any format in use, and what it says of itself.

    Files of this project know their network, run and scores. Of others, the tensors tell the network.

    Args:
        entry: `params` or `params_ema`; None: the running average where the file has one.

    Raises:
        UserError: the file cannot be read, holds no weights, or says of itself what makes no sense or contradicts its
            tensors.
    """
    path = Path(path)
    payload = checkpoint.load(path)
    weights = generator_weights(payload, path, entry=entry)
    network, scale = detect_architecture(weights.state), traits_of(weights.state).get("scale")
    if not isinstance(payload.get("options"), dict) or "generator" not in payload["options"]:
        return GeneratorFile(
            path,
            weights,
            name=path.stem,
            about=weights.kind,
            generator_options=network,
            scale=scale,
        )
    record, options = _validated(payload, path)
    return GeneratorFile(
        path,
        weights,
        name=options.name,
        about="; ".join((_kind(weights, options.generator), *_in_words(options.name, record))),
        generator_options=_agreed(network, options.generator, path),
        scale=scale or record.scale,
        step=record.step,
        scores=record.scores,
        scored_step=record.scored_step,
        paper_row=options.test.paper_row,
        record=record.model_dump(),
    )


def _validated(payload: dict, path: Path) -> tuple[Record, RecordedOptions]:
    try:
        record = Record.model_validate({key: payload[key] for key in Record.model_fields if key in payload})
        return record, RecordedOptions.model_validate(record.options, strict=True)
    except ValidationError as error:
        problem = error.errors(include_input=False)[0]
        raise UserError(
            f"{path} says of itself what makes no sense: its {problem['loc'][0]}: {problem['msg']}"
        ) from None


def _kind(weights: GeneratorWeights, said: dict[str, Any]) -> str:
    if traits_of(weights.state):
        return weights.kind
    return f"{json.dumps(said):.200}, from {weights.entry!r}"  # the tensors tell nothing


def _in_words(name: str, record: Record) -> list[str]:
    run = name if record.step is None else f"{name} at step {record.step:,}"
    benchmarks = [
        f"{benchmark} " + " ".join(f"{metric} {mean:.4g}" for metric, mean in means.items())
        for benchmark, means in record.scores.items()
    ]
    at = "" if record.scored_step in (None, record.step) else f" (at step {record.scored_step:,})"
    return [run, ", ".join(benchmarks) + at] if benchmarks else [run]


def _agreed(network: dict[str, Any] | None, said: dict[str, Any], path: Path) -> dict[str, Any] | None:
    """The options of the network, of which its tensors (`network`) and its record tell."""
    if said.get("type") not in TYPES:
        return said  # a network that was added to this project: its tensors tell nothing, and its record all
    if network is None:
        return None
    for option, value in network.items():
        if option in said and not _same(said[option], value):
            raise UserError(
                f"{path} contradicts itself: it says of itself {option} {said[option]!r:.60}, and its tensors are of "
                f"{option} {_as_json(value)!r:.60}"
            )
    return {**network, **said}


def _same(said: Any, value: Any) -> bool:
    if isinstance(value, float):  # known up to a rounding to whole channels; the shapes are compared in the end
        return isinstance(said, int | float) and abs(said - value) <= 0.5
    return said == _as_json(value)


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
