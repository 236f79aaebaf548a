"""The user's mistakes, told in one sentence. Every room may import this module; it imports nothing of ours."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user gave is wrong, and they can mend it.

    The message is the one sentence that they read: what was given, what was expected, where. Entry scripts print it
    without a traceback and exit with code 2. Names of files are part of it, and names are data: what a terminal would
    take for a command, or could not show, is escaped.
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
