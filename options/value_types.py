"""The types of single option values: numbers with bounds, ranges, file names, values that may be `auto`."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
)

SCALES = (1, 2, 3, 4, 8)


def expect(what: str) -> WrapValidator:
    """Replaces pydantic's messages, of which a union has one for each member, by "should be <what>"."""

    def validate(value: Any, inner: ValidatorFunctionWrapHandler) -> Any:
        try:
            return inner(value)
        except ValidationError:
            raise ValueError(f"should be {what}") from None

    return WrapValidator(validate)


def _whole(value: Any) -> Any:
    """YAML reads 3e5 as a float; as a number of steps it is an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _layer_name(value: Any) -> Any:
    """Layer names are text, but YAML reads some of them as numbers."""
    value = _whole(value)
    return str(value) if type(value) is int else value


def _possible_path(value: str | Path) -> str | Path:
    """Refuses what cannot be a path. File system calls would fail on it later, with various errors."""
    encoded = os.fsencode(value)
    if b"\0" in encoded or len(encoded) > 2000 or any(len(name) > 255 for name in encoded.split(b"/")):
        raise ValueError("should be a path, of names of at most 255 bytes")
    return value


def _rising(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError("should be the lower end and the upper end of a range")
    return ends


def _scale(value: int) -> int:
    if value not in SCALES:
        raise ValueError(f"should be {', '.join(map(str, SCALES[:-1]))} or {SCALES[-1]}")
    return value


# The bounds come before the validator: in the other order the JSON schema would lack them.
Natural = Annotated[int, Field(ge=0, lt=2**63), BeforeValidator(_whole)]
Positive = Annotated[int, Field(ge=1, lt=2**63), BeforeValidator(_whole)]
NaturalOrAuto = Annotated[Natural | Literal["auto"], expect("a whole number or auto")]
BatchSize = Annotated[Positive | Literal["auto"] | None, expect("a whole number above 0, auto or null")]
SwitchOrAuto = Annotated[bool | Literal["auto"], expect("true, false or auto")]
Scale = Annotated[int, BeforeValidator(_whole), AfterValidator(_scale), WithJsonSchema({"enum": list(SCALES)})]
TileSide = Annotated[int, Field(ge=64, multiple_of=8), BeforeValidator(_whole)]
KernelSide = Annotated[int, Field(ge=3, le=21), BeforeValidator(_whole)]
SharpeningSide = Annotated[int, Field(ge=3, le=255), BeforeValidator(_whole)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Range = Annotated[tuple[NonNegativeFloat, NonNegativeFloat], AfterValidator(_rising)]
PositiveRange = Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_rising)]
Augmentations = Annotated[
    tuple[Literal["flip", "rotate"], ...],
    expect("a list of flip and rotate, such as [flip, rotate], which true was before, or [], which false was"),
]
JPEGQuality = Annotated[float, Field(ge=1, le=100)]
FileName = Annotated[str, AfterValidator(_possible_path)]
# strict mode would refuse the string that YAML gives
Location = Annotated[Path, Field(strict=False), AfterValidator(_possible_path)]
# a layer by its name or its stride
Layer = Annotated[
    str,
    BeforeValidator(_layer_name),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "integer"}]}),
]
_Weight = Annotated[float, Field(gt=0, le=100)]
_WEIGHTS_SCHEMA = {
    "type": "object",
    "additionalProperties": {"type": "number", "exclusiveMinimum": 0, "maximum": 100},
    "minProperties": 1,
}
# folders with their weights; a name alone is that folder with weight 1
Folders = Annotated[
    dict[FileName, _Weight],
    BeforeValidator(lambda value: {value: 1.0} if isinstance(value, str) else value),
    WithJsonSchema({"anyOf": [{"type": "string"}, _WEIGHTS_SCHEMA]}),
]
