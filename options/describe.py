"""Documentation of the options: a JSON schema for editors, and a commented YAML tree for the terminal.

`python -m options.describe` writes options/schema.json, which every recipe names in its first line.
"""

import json
import textwrap
from pathlib import Path
from typing import Any

import yaml

from sed_sr.options.errors import UserError, did_you_mean
from sed_sr.options.schema import Options

SCHEMA_FILE = Path(__file__).with_name("schema.json")
# JSON schema's terms -> words of the help text. Limits of 2**63, the end of 64-bit integers, are not shown.
TYPES = {"boolean": "true or false", "integer": "whole number", "string": "text"}
LIMITS = {
    "minimum": "from",
    "exclusiveMinimum": "above",
    "maximum": "to",
    "exclusiveMaximum": "below",
    "multipleOf": "in steps of",
}


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of a recipe. No key is required, since a recipe may extend one that has it.

    It checks single values; conflicts between options are found by `load_options`.
    """
    schema = Options.model_json_schema()
    for section in (schema, *schema["$defs"].values()):
        section.pop("required", None)
        section.pop("title")
        for option in section["properties"].values():
            option.pop("title", None)  # it repeats the key
            if "$ref" in option:
                option.pop("default", None)  # its keys have theirs
    generator = schema["properties"]["generator"]
    del generator["discriminator"]
    generator["anyOf"] = generator.pop("oneOf")  # without `type`, the keys may fit several
    parent = {"type": ["string", "null"], "description": "the recipe that this one changes, relative to this file"}
    schema["properties"] = {"extends": parent, **schema["properties"]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def commented_options(key: str | None = None, *, width: int = 80) -> str:
    """The options with descriptions, types and defaults, as YAML that can be edited into a recipe.

    Args:
        key: a path in the tree, such as losses.gan, to show only that part; None for all.
        width: maximum characters in a line.

    Raises:
        UserError: the key does not exist.
    """
    schema = Options.model_json_schema()
    tree = _inlined(schema, schema["$defs"])
    return "\n".join(_section_lines([tree], key.split(".") if key else [], width)) + "\n"


def _inlined(value: Any, definitions: dict[str, Any]) -> Any:
    """A JSON schema with every reference replaced by its definition."""
    if isinstance(value, list):
        return [_inlined(inner, definitions) for inner in value]
    if not isinstance(value, dict):
        return value
    value = dict(value)
    reference = value.pop("$ref", None)
    target = _inlined(definitions[reference.rpartition("/")[2]], definitions) if reference else {}
    return {**target, **{key: _inlined(inner, definitions) for key, inner in value.items() if key != "$defs"}}


def _section_lines(choices: list[dict[str, Any]], path: list[str], width: int) -> list[str]:
    """The keys of a section. Of several alternatives, all but the first are commented out."""
    width -= 2 * (len(choices) > 1)
    known = list(dict.fromkeys(key for section in choices for key in section["properties"]))
    if path and path[0] not in known:
        raise UserError(f"{path[0]} is not an option{did_you_mean(path[0], known)}; allowed here: {', '.join(known)}")
    lines = []
    for section in choices:
        chosen = {key: option for key, option in section["properties"].items() if not path or key == path[0]}
        block = _comment(section.get("description", ""), width) if len(choices) > 1 and chosen else []
        for key, option in chosen.items():
            if block and _sections(option):
                block.append("")
            required = key in section.get("required", ())
            block += _option_lines(key, option, path[1:], required=required, width=width)
        lines += [f"# {line}" for line in block] if lines else block
    return lines


def _option_lines(key: str, option: dict[str, Any], path: list[str], *, required: bool, width: int) -> list[str]:
    sections = _sections(option)
    if path and not sections:
        raise UserError(f"{path[0]} is not an option: {key} is one, with a single value")
    kind = _kind(option) + ", required" * required
    lines = _comment(option.get("description", ""), width, kind="" if kind == "keys" else f"[{kind}]")
    if sections:
        if not path and option.get("default", ...) is None:
            below = _section_lines(sections, path, width - 4)
            return [*lines, f"{key}: null", *(f"#   {line}".rstrip() for line in below)]
        below = _section_lines(sections, path, width - 2)
        return [*lines, f"{key}:", *(f"  {line}".rstrip() for line in below)]
    value = option.get("const", "") if required else _flow(option["default"])
    return lines + textwrap.wrap(f"{key}: {value}", width, subsequent_indent="  ", break_on_hyphens=False)


def _flow(value: Any) -> str:
    """YAML in one line, written as a list of one: PyYAML ends a document of one word by a line of dots."""
    return yaml.safe_dump([value], default_flow_style=True, width=10**6).strip()[1:-1]


def _comment(text: str, width: int, *, kind: str = "") -> list[str]:
    unbroken = kind.replace(" ", "\N{NO-BREAK SPACE}")
    lines = textwrap.wrap(f"{text} {unbroken}", width, initial_indent="# ", subsequent_indent="# ")
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]


def _choices(option: dict[str, Any]) -> list[dict[str, Any]]:
    return option.get("anyOf") or option.get("oneOf") or [option]


def _sections(option: dict[str, Any]) -> list[dict[str, Any]]:
    return [choice for choice in _choices(option) if "properties" in choice]


def _kind(option: dict[str, Any]) -> str:
    """The allowed values in words."""
    choices = _choices(option)
    if len(choices) > 1:
        return ", or ".join(dict.fromkeys(_kind(choice) for choice in choices))
    if "properties" in option:
        return "keys"
    if "enum" in option:
        return " | ".join(map(str, option["enum"]))
    if "const" in option:
        return option["const"]
    if option["type"] == "array":
        if "prefixItems" in option:
            return f"list of {len(option['prefixItems'])}, each {_kind(option['prefixItems'][0])}"
        return f"{'non-empty ' * ('minItems' in option)}list of {_kind(option['items'])}"
    if option["type"] == "object":
        return f"keys with {_kind(option['additionalProperties'])}"
    limits = [f"{word} {option[limit]}" for limit, word in LIMITS.items() if option.get(limit, 2**63) < 2**63]
    kind: str = option["type"]
    return " ".join([TYPES.get(kind, kind), *limits])


if __name__ == "__main__":
    SCHEMA_FILE.write_text(json.dumps(recipe_schema(), indent=2) + "\n", encoding="utf-8")
