"""Turns pydantic's validation errors into sentences in the words of a recipe."""

import re
from collections.abc import Mapping
from typing import Any, get_args

from sed_sr.options.errors import did_you_mean, short_repr
from sed_sr.options.schema import GeneratorOptions, Options, Section

_GENERATORS = get_args(get_args(GeneratorOptions)[0])  # the classes of the union
_GENERATOR_TYPES = [get_args(net.model_fields["type"].annotation)[0] for net in _GENERATORS]


def explain(problem: Mapping[str, Any]) -> tuple[tuple[str, ...], str]:
    """(key path, what is wrong with it) for an item of `ValidationError.errors()`."""
    path = tuple(
        str(part)
        for depth, part in enumerate(problem["loc"])
        if not (depth == 1 and part in _GENERATOR_TYPES)  # pydantic puts the union's tag into the path
    )
    if path[-1:] == ("[key]",):  # a key of a mapping such as dataset.hr: report the mapping
        path = path[:-2]
    given = short_repr(problem["input"])
    kind = problem["type"]
    if kind == "extra_forbidden":
        keys = list(_section_at(problem["loc"][:-1]).model_fields)
        return path, f"is not an option{did_you_mean(path[-1], keys)}; allowed here: {', '.join(keys)}"
    if kind in ("missing", "union_tag_not_found"):
        if kind == "union_tag_not_found" and isinstance(problem["input"], dict):
            path = (*path, "type")
        return path, "is required and was not given"
    if kind in ("literal_error", "union_tag_invalid"):
        allowed = re.findall(r"'([^']*)'", problem["ctx"].get("expected") or problem["ctx"]["expected_tags"])
        if kind == "union_tag_invalid":
            path, given = (*path, "type"), repr(problem["input"]["type"])
        return path, f"is {given}{did_you_mean(given.strip(repr(' ')), allowed)}; allowed: {', '.join(allowed)}"
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return path, f"is {given}; expected keys and values"
    if kind == "tuple_type":
        example = f", as in [{problem['input']}]" if isinstance(problem["input"], str) else ""
        return path, f"is {given}; it should be a list{example}"
    if kind == "string_pattern_mismatch":
        return path, f"is {given}; expected {Options.model_fields[path[-1]].description}"
    expected = re.sub(r"^(Input|String|Value error,|Value|Tuple|Dictionary) ", "", problem["msg"])
    for python, plain in (("is not a valid path for <class 'pathlib.Path'>", "should be a path"), ("tuple", "list")):
        expected = expected.replace(python, plain)
    return path, f"is {given}; it {expected.removesuffix(' after validation')}"


def _section_at(location: tuple[str | int, ...]) -> type[Section]:
    """The option class at a pydantic location."""
    section: type[Section] = Options
    parts = map(str, location)
    for part in parts:
        field = section.model_fields[part]
        classes = [c for c in (field.annotation, *get_args(field.annotation)) if isinstance(c, type)]
        sections = [c for c in classes if issubclass(c, Section)]
        section = sections[_GENERATOR_TYPES.index(next(parts))] if len(sections) > 1 else sections[0]
    return section
