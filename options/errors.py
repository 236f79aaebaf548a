"""`UserError`, and helpers that put what the user gave into its message. Every folder may import this module."""

import difflib
import json
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """The user gave something wrong and can correct it.

    The message is what the user reads: what was given, what was expected, where. Entry scripts print it without a
    traceback and exit with code 2. It may contain file names, so control characters are escaped: a terminal would
    interpret them.
    """

    def __str__(self) -> str:
        return "".join(
            char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode()
            for char in super().__str__()
        )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean X?)` where a known word is similar, else an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""


def short_repr(value: Any) -> str:
    """A value as YAML spells it, at most 60 characters."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)  # null, true, false
    text = repr(list(value)) if isinstance(value, tuple) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def one_line(text: str) -> str:
    """The text with control characters escaped, at most 500 characters: the middle of a longer text is left out."""
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    return text if len(text) <= 500 else f"{text[:300]}...{text[-197:]}"
