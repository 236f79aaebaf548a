"""Atomic writing: after a crash a file is either the old or the new one, never lost and never half-written."""

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
    """A file could not be written. The next one would fail too, so a batch of jobs ends here."""


@contextmanager
def atomic_writer(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary binary file that replaces `path` when the block ends without an exception.

    Missing folders are created. After an exception `path` is unchanged and no temporary file is left.

    Args:
        durable: wait until the file and its name are on the disk. If False, a power failure can leave `path` empty,
            truncated or with zeros in it. This is for files that can be made again: flush them together with
            `flush_file_systems`, and check those of an interrupted run before use.

    Raises:
        WriteError: the file cannot be written (full disk, no permission).
    """
    with _replacing(path, durable=durable) as temporary, open(temporary, "xb") as file:
        yield file
        if durable:
            _flush(file)


def link_file(source: Path, target: Path) -> None:
    """Make `target` a hard link to the file `source`, with the guarantees of `atomic_writer`.

    Where the file system has no hard links, it is a copy.
    """
    with _replacing(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            with open(source, "rb") as original, open(temporary, "xb") as copy:
                shutil.copyfileobj(original, copy)
                _flush(copy)


@contextmanager
def _replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A temporary path; the file that the block creates there replaces `path` when the block succeeds."""
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
    # The rename itself must reach the disk too. Some network file systems cannot flush a folder; this is ignored, since
    # the content of the file is safe already.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def flush_file_systems(folders: Iterable[Path]) -> None:
    """Wait until everything that was written to the file systems of these folders is on the disk.

    This takes one system call per file system. Where the C library has no `syncfs` (macOS), all file systems of the
    machine are flushed.

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
    """The path itself or its nearest existing parent, which is on the disk that the path will be written to."""
    return next(above for above in (path, *path.absolute().parents) if os.path.exists(above))


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text with the guarantees of `atomic_writer`.

    Bytes of file names that are not valid UTF-8 are written as escapes (`caf\\udce9.png`).
    """
    with atomic_writer(Path(path)) as file:
        file.write(text.encode(errors="backslashreplace"))
