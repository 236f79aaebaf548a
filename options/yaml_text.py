"""YAML text to plain values, with the place of every key for messages, and back to text.

PyYAML instead of ruamel.yaml (line numbers, YAML 1.2), which reads `yes` and `no` as text and accepts an anchor inside
itself as null. It would need as much code as below to report places and to limit aliases.
"""

import re
from typing import Any

import yaml

from sed_sr.options.errors import UserError, one_line, short_repr

MAX_VALUES = 10_000  # of a document; a few lines of aliases to aliases can stand for billions of values

Sources = dict[tuple[str, ...], str]  # key path -> where it was given: FILE:LINE, or an argument


class _Loader(yaml.SafeLoader):
    """YAML 1.1, except that 1e-4 is a number as in YAML 1.2."""


class _Dumper(yaml.SafeDumper):
    """Quotes the text "1e-4", which `_Loader` would read as a number."""


for _dialect in (_Loader, _Dumper):
    _dialect.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)[eE][-+]?[0-9]+$"),
        list("-+.0123456789"),
    )


def parse_yaml(text: str, source: str, *, line_numbers: bool = True) -> tuple[Any, Sources]:
    """The value of a document (None if it is empty; lists become tuples), and where each of its keys was given.

    Raises UserError that names the source, and the line unless `line_numbers` is off.
    """
    document = _Document(source, line_numbers)
    try:
        node = yaml.compose(text, Loader=_Loader)
        return (document.value(node, ()) if node else None), document.sources
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{source}: not valid YAML ({one_line(reason)}{place})") from None
    except RecursionError:
        raise UserError(f"{source}: not valid YAML (nested too deeply, or an anchor inside itself)") from None


def to_yaml(tree: dict[str, Any]) -> str:
    """Text that `parse_yaml` reads back to an equal tree."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=120)


class _Document:
    """Builds plain values from YAML nodes and notes where each key was given."""

    def __init__(self, source: str, line_numbers: bool) -> None:
        self.source = source
        self.line_numbers = line_numbers
        self.sources: Sources = {}
        self.values = 0

    def value(self, node: yaml.Node, path: tuple[str, ...]) -> Any:
        self.values += 1
        if self.values > MAX_VALUES:
            raise UserError(f"{self.source}: more than {MAX_VALUES} values, with all aliases expanded")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return tuple(self.value(item, path) for item in node.value)
        try:
            value = _Loader("").construct_object(node)
            repr(value)  # fails for a number of thousands of digits, which no message could show
        except Exception:  # PyYAML raises KeyError, IndexError, AttributeError and others for wrong tags (!!bool x)
            raise UserError(f"{self._place(node)}: cannot read the value {short_repr(node.value)}") from None
        return value

    def _mapping(self, node: yaml.MappingNode, path: tuple[str, ...]) -> dict[str, Any]:
        mapping = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                raise UserError(f"{self._place(key_node)}: a key should be a plain word")
            key, here = key_node.value, (*path, key_node.value)
            if key in mapping:
                raise UserError(f"{self._place(key_node)}: the key {one_line('.'.join(here))} is given twice")
            self.sources[here] = self._place(key_node)
            mapping[key] = self.value(value_node, here)
        return mapping

    def _place(self, node: yaml.Node) -> str:
        return f"{self.source}:{node.start_mark.line + 1}" if self.line_numbers else self.source
