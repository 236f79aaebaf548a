"""Writing files so that a crash never costs the old one, and a half-written one never bears a final name."""

import ctypes
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from sed_sr.options.errors import UserError

TEMPORARY_SUFFIX = ".tmp"


class WriteError(UserError):
    """A file could not be written: neither could the next one, so a batch of work stops here."""


@contextmanager
def atomic_writer(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """A binary file to write into, which becomes `path` at once when the block ends well, and not at all otherwise.

    Folders on the way are created. Whatever ends the block early, `path` stays as it was and no temporary file is left.

    Args:
        durable: wait until the file and its name are on the disk. If False, a power failure can leave `path` empty,
            truncated or with zeros in it. This is for files that can be made again: flush them together, by
            `flush_file_systems`, and check those of an interrupted run before use.

    Raises:
        WriteError: the file cannot be written (full disk, no permission).
    """
    with _becoming(path, durable=durable) as temporary, open(temporary, "xb") as file:
        yield file
        if durable:
            _flush(file)


def link_file(source: Path, target: Path) -> None:
    """Make `target` another name of the file `source`, with the guarantees of `atomic_writer`.

    It takes no space; where the file system has no hard links, it is a copy.
    """
    with _becoming(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            with open(source, "rb") as original, open(temporary, "xb") as copy:
                shutil.copyfileobj(original, copy)
                _flush(copy)


@contextmanager
def _becoming(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A temporary name, of which the block makes a file that becomes `path` when the block ends well."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
        if durable:
            _flush_folder(path.parent)
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    # The rename itself must reach the disk too. Some network file systems cannot flush a folder; they are let off,
    # as the file's own bytes are safe by now.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def flush_file_systems(folders: Iterable[Path]) -> None:
    """Wait until everything that was written to the file systems of these folders is on the disk.

    This is one system call for each file system, and other file systems of the machine are not waited for. Where the
    C library has no `syncfs` (macOS), all of them are flushed.

    Raises:
        WriteError: the disk is full or failed.
    """
    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if syncfs is None:
        os.sync()
        return
    for folder in {os.stat(folder).st_dev: folder for folder in folders}.values():
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            if syncfs(descriptor):
                raise WriteError(f"cannot flush {folder} to the disk: {os.strerror(ctypes.get_errno())}")
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
