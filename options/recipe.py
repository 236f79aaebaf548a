"""Reads a recipe: the files that it extends, the `--set key=value` of the command line, the check of the result."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sed_sr.options.consistency import find_conflicts
from sed_sr.options.errors import UserError, one_line, short_repr
from sed_sr.options.messages import explain
from sed_sr.options.schema import Options
from sed_sr.options.yaml_text import Sources, parse_yaml

# Mappings that are replaced as a whole: the folders of a child recipe do not join those of its parent.
REPLACED_AS_A_WHOLE = {("dataset", "hr")}


@dataclass(frozen=True)
class Override:
    """One option given on the command line."""

    key: str  # path in the tree, e.g. train.total_steps
    value: Any
    source: str  # the argument as the user typed it, for messages

    @classmethod
    def parse(cls, text: str) -> "Override":
        """From the argument of `--set`, `key=value` with a YAML value. Raises UserError for another form."""
        source = f"--set {one_line(text)}"
        key, equals, value = text.partition("=")
        if not equals or not all(key.split(".")):
            raise UserError(f"{source}: expected key=value, such as --set train.total_steps=1000")
        return cls(key, parse_yaml(value, source, line_numbers=False)[0], source)


def load_options(recipe: str | Path | dict[str, Any], overrides: Sequence[Override] = ()) -> Options:
    """Read a recipe with the recipes that it extends, apply the overrides (the last one wins), and check the result.

    Args:
        recipe: a file, or a tree of keys and values in its place.

    Raises UserError with a line for every problem: file and line (or the argument), what was given, what is allowed.
    """
    tree, sources = (_copy(recipe), {}) if isinstance(recipe, dict) else _read_chain(Path(recipe), ())
    for override in overrides:
        _apply(override, tree, sources)
    try:
        options = Options.model_validate(tree)
    except ValidationError as error:
        # pydantic counts valid items only, so it reports a list of wrong items as too short as well.
        problems = [explain(found) for found in error.errors() if not (found["type"] == "too_short" and found["input"])]
    else:
        problems = [(tuple(key.split(".")), text) for key, text in find_conflicts(options)]
        if not problems:
            return options
    default = "" if isinstance(recipe, dict) else f"{recipe}: "
    lines = [f"{_source_of(path, sources) or default}{'.'.join(path)} {text}" for path, text in problems]
    raise UserError("\n".join(map(one_line, lines)))


def _read_chain(file: Path, children: tuple[Path, ...]) -> tuple[dict[str, Any], Sources]:
    """The tree of a file merged over that of the file it extends, and where each key was given."""
    shown = one_line(str(file))
    text = _read_text(file, shown, children)
    if file.resolve() in children:
        raise UserError(f"{shown}: extends itself, through {' -> '.join(path.name for path in children)}")
    tree, sources = parse_yaml(text, shown)
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise UserError(f"{shown}: expected keys and values, given {short_repr(tree)}")
    parent = tree.pop("extends", None)
    if parent is None:
        return tree, sources
    if not isinstance(parent, str):
        raise UserError(f"{sources[('extends',)]}: extends should be the name of one option file")
    merged, parent_sources = _read_chain(file.parent / parent, (*children, file.resolve()))
    _merge(merged, tree)
    return merged, {**parent_sources, **sources}


def _read_text(file: Path, shown: str, children: tuple[Path, ...]) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = difflib.get_close_matches(file.name, [path.name for path in file.parent.glob("*.yml")], n=1, cutoff=0.5)
        hint = f"; did you mean {file.parent / near[0]}?" if near else ""
        by = f" (extended by {children[-1]})" if children else ""
        raise UserError(f"option file {shown}{by} does not exist{hint}") from None
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or an impossible file name
        reason = one_line(getattr(error, "strerror", None) or str(error))
        raise UserError(f"option file {shown} cannot be read ({reason})") from None


def _apply(override: Override, tree: dict[str, Any], sources: Sources) -> None:
    *parents, key = path = tuple(override.key.split("."))
    section = tree
    for depth, parent in enumerate(parents, 1):
        sources.setdefault(path[:depth], override.source)
        if not isinstance(section.get(parent), dict):
            section[parent] = {}
        section = section[parent]
    _merge(section, {key: _copy(override.value)}, at=path[:-1])
    sources[path] = override.source


def _merge(tree: dict[str, Any], changes: dict[str, Any], *, at: tuple[str, ...] = ()) -> None:
    """Merge `changes` into the section of `tree` at this path: mappings are merged, everything else is replaced."""
    for key, value in changes.items():
        here = (*at, key)
        if isinstance(value, dict) and isinstance(tree.get(key), dict) and here not in REPLACED_AS_A_WHOLE:
            _merge(tree[key], value, at=here)
        else:
            tree[key] = value


def _copy(value: Any) -> Any:
    """A copy with tuples for lists, as `parse_yaml` returns them."""
    if isinstance(value, dict):
        return {key: _copy(inner) for key, inner in value.items()}
    return tuple(map(_copy, value)) if isinstance(value, list | tuple) else value


def _source_of(path: tuple[str, ...], sources: Sources) -> str:
    """Where the key or its closest parent was given, with a colon; empty if nowhere."""
    for depth in range(len(path), 0, -1):
        if path[:depth] in sources:
            return f"{sources[path[:depth]]}: "
    return ""
