"""Writing files so that a crash never costs the old one, and a half-written one never bears a final name."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from utils.errors import UserError

TEMPORARY_SUFFIX = ".tmp"


class WriteError(UserError):
    """A file could not be written: neither could the next one, so a batch of work stops here."""


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write into, which becomes `path` at once when the block ends well, and not at all otherwise.

    Folders on the way are created. Whatever ends the block early, `path` stays as it was and no temporary file is left.

    Raises:
        WriteError: the file cannot be written (full disk, no permission).
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _flush_folder(folder: Path) -> None:
    # The rename itself must reach the disk too. Some network file systems cannot flush a folder; they are let off,
    # as the file's own bytes are safe by now.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def nearest_existing(path: Path) -> Path:
    """The path itself, or the nearest one above it that is there: the disk that it will be written to is that one's."""
    return next(above for above in (path, *path.absolute().parents) if os.path.exists(above))


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text with the guarantees of `atomic_writer`.

    Of a file's name that is no text, the bytes become escapes (`caf\\udce9.png`).
    """
    with atomic_writer(Path(path)) as file:
        file.write(text.encode(errors="backslashreplace"))
