"""Downloading a large file over a line that breaks: continued where it broke off, verified before it bears its name."""

import fcntl
import hashlib
import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from sed_sr.data.files import WriteError, write_text
from sed_sr.options.errors import UserError

TIMEOUT_S = 10  # to connect, and between two pieces
PAUSES_S = (1, 2, 4, 8)  # before a broken line is tried again; from the beginning after each that brought something
PIECE_BYTES = 1 << 16
LOOPBACK = ("127.0.0.1", "::1", "localhost")
PASSING_TROUBLE = (408, 429, 500, 502, 503, 504)  # what a server answers that may do better in a moment
RANGE_BEYOND_THE_END = 416
console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


class DownloadFailed(UserError):
    """No source has brought the file."""


class _SourceFailed(UserError):
    """This source does not bring the file; the next one may."""


@dataclass(frozen=True)
class _Wanted:
    """What is known of the file beforehand, and where to show how much has arrived: show(bytes, of how many)."""

    size_bytes: int | None
    sha256: str | None
    check: Callable[[Path], object] | None
    show: Callable[[int, int | None], None]


def download(
    urls: Sequence[str],
    path: Path,
    *,
    size_bytes: int | None,
    sha256: str | None,
    check: Callable[[Path], object] | None = None,
) -> None:
    """Fetch a file from the first source that brings it; folders on the way are created.

    What has arrived lies in `part_of(path)`. If the server tells the version of the file (ETag or Last-Modified), it
    stays there whatever ends the download, SIGKILL included, and the next download goes on behind it. Of several
    processes that want the same file, one downloads and the others wait for it.

    Args:
        urls: https, or http on this machine itself; tried in this order.
        path: its final name, which it gets when it is whole.
        size_bytes, sha256: those that were published; None where they were not.
        check: opens the whole file before it gets its name, and raises UserError if it is not of the wanted kind.

    Raises:
        DownloadFailed: no source brought it; the message has each with its reason.
        WriteError: the file cannot be written (full disk, no permission).
    """
    with _claimed(path) as part:
        if path.exists():  # another process has brought it meanwhile
            return
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        failures = []
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            bar = progress.add_task(f"Downloading {path.name}", total=size_bytes)

            def show(done_bytes: int, total_bytes: int | None) -> None:
                progress.update(bar, completed=done_bytes, total=total_bytes)

            wanted = _Wanted(size_bytes, sha256, check, show)
            for url in urls:
                if failures:
                    console.print(f"{failures[-1]}; trying {url}")
                try:
                    _fetch(url, part, wanted)
                except _SourceFailed as failure:
                    failures.append(f"{url}: {failure}")
                else:
                    part.become(path)
                    return
        raise DownloadFailed("; ".join(failures))


def part_of(path: Path) -> Path:
    """Where the beginning of a file lies whose download was broken off."""
    return path.with_name(f"{path.name}.part")


class _Part:
    """The beginning of a file, in an open file of this process alone, and a note beside it of what it is part of."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self._file = file
        self._note = path.with_name(f"{path.name}.source")

    @property
    def size_bytes(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    @property
    def source(self) -> tuple[str, str] | None:
        """URL and version of the file, where what is there can be continued."""
        if not self.size_bytes or not self._note.exists():
            return None
        lines = self._note.read_text("utf-8").splitlines()
        return (lines[0], lines[1]) if len(lines) == 2 else None

    def begin(self, url: str, version: str | None) -> None:
        """Nothing is there, and what will be comes from this version of the file."""
        self.clear()
        if version is not None:
            write_text(self._note, f"{url}\n{version}\n")

    def goes_on(self, url: str, version: str | None, first_byte: int) -> bool:
        """Whether an answer continues what is there."""
        return self.size_bytes == first_byte and self.source == (url, version)

    def clear(self) -> None:
        with _writing(self.path):
            self._file.truncate(0)
            self._note.unlink(missing_ok=True)

    def append(self, piece: bytes) -> None:
        with _writing(self.path):
            self._file.write(piece)
            self._file.flush()

    def sha256(self) -> str:
        digest = hashlib.sha256()
        with _writing(self.path):
            self._file.seek(0)
            while piece := self._file.read(PIECE_BYTES):
                digest.update(piece)
        return digest.hexdigest()

    def become(self, path: Path) -> None:
        # That the rename reaches the disk need not be waited for: without it, the part is still there, and whole.
        with _writing(path):
            os.fsync(self._file.fileno())
            os.replace(self.path, path)
            self._note.unlink(missing_ok=True)

    def leave(self) -> None:
        """Remove what nobody can continue."""
        with suppress(OSError):
            if self._is_there() and not self.source:
                self.path.unlink()
                self._note.unlink(missing_ok=True)

    def claim(self) -> bool:
        """Keep other processes out; False if one has finished or removed the file while this one waited for it."""
        with _writing(self.path):
            try:
                # not lockf, whose lock is given up when anybody here, such as a check, closes another file of it
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                console.print(f"another process is downloading to {self.path}: waiting for it")
                fcntl.flock(self._file, fcntl.LOCK_EX)
        return self._is_there()

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False


@contextmanager
def _claimed(path: Path) -> Iterator[_Part]:
    """The part of `path`, which belongs to this process as long as the block runs."""
    with _writing(part_of(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with _writing(part_of(path)):
            file = part_of(path).open("a+b")
        with file:
            part = _Part(part_of(path), file)
            if part.claim():
                try:
                    yield part
                finally:
                    part.leave()
                return


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from error


def _fetch(url: str, part: _Part, wanted: _Wanted) -> None:
    """Complete and verify the part from one source.

    Raises:
        _SourceFailed: it does not bring the file. What has arrived stays, unless it is wrong.
    """
    continued = part.size_bytes > 0
    _receive_all(url, part, wanted)
    fault = _fault(part, wanted)
    if fault is not None:
        part.clear()
        if not continued:
            raise _SourceFailed(f"it brought {fault}")
        _fetch(url, part, wanted)  # anew: what lay there from before may be at fault


def _fault(part: _Part, wanted: _Wanted) -> str | None:
    """What a whole file is, where it is not the wanted one."""
    found = part.sha256() if wanted.sha256 is not None else None
    if found != wanted.sha256:
        return f"a file with the sha256 {found} where {wanted.sha256} was expected"
    try:
        if wanted.check is not None:
            wanted.check(part.path)
    except UserError as error:
        return f"another file: {error}"
    return None


def _receive_all(url: str, part: _Part, wanted: _Wanted) -> None:
    """Complete the part, in as many attempts as bring something."""
    pauses_s, furthest_bytes, has_answered = iter(PAUSES_S), 0, False
    while part.size_bytes != wanted.size_bytes:
        try:
            with _open(url, part) as response:
                has_answered = True
                _receive(response, url, part, wanted)
            return
        except urllib.error.HTTPError as error:
            error.close()
            has_answered, reason = True, f"{error.code} {error.reason}"
            if error.code == RANGE_BEYOND_THE_END:
                if error.headers.get("Content-Range") == f"bytes */{part.size_bytes}":
                    return  # it was whole
                part.clear()
            elif error.code not in PASSING_TROUBLE:
                raise _SourceFailed(reason) from error
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: no server has such an address
            reason = _in_words(error)
            if not has_answered:  # there is no network, or no such server: waiting would not help
                raise _SourceFailed(reason) from error
        if part.size_bytes > furthest_bytes:
            pauses_s, furthest_bytes = iter(PAUSES_S), part.size_bytes
        pause_s = next(pauses_s, None)
        if pause_s is None:
            if part.source:
                reason += f" (the first {part.size_bytes} bytes are kept in {part.path}, to be continued)"
            raise _SourceFailed(reason)
        time.sleep(pause_s)


def _open(url: str, part: _Part) -> http.client.HTTPResponse:
    _refuse_plain_http(url)
    request = urllib.request.Request(url)
    known_url, known_version = part.source or (None, None)
    if known_url == url:
        request.add_header("Range", f"bytes={part.size_bytes}-")
        request.add_header("If-Range", known_version)  # of another version, the server sends the whole file
    return urllib.request.build_opener(_SafeRedirects).open(request, timeout=TIMEOUT_S)


def _receive(response: http.client.HTTPResponse, url: str, part: _Part, wanted: _Wanted) -> None:
    """Append what one answer holds.

    Raises:
        _SourceFailed: it is not the file that is wanted, or could not be seen to be.
        OSError, http.client.HTTPException: the line broke.
    """
    first_byte, total_bytes = _extent(response)
    if total_bytes is None:
        total_bytes = wanted.size_bytes
    if wanted.size_bytes not in (None, total_bytes):
        raise _SourceFailed(f"it offers {total_bytes} bytes where {wanted.size_bytes} are expected")
    if total_bytes is None and wanted.sha256 is None and not response.chunked:
        raise _SourceFailed("it does not tell how large the file is, so that a part of it could pass for the whole")
    if first_byte == 0:
        part.begin(url, _version(response.headers))
    elif not part.goes_on(url, _version(response.headers), first_byte):
        part.clear()
        raise ConnectionError("it sent another part of the file than it was asked for")
    if total_bytes is not None:
        _refuse_full_disk(part, missing_bytes=total_bytes - part.size_bytes)
    while piece := response.read1(PIECE_BYTES):
        part.append(piece)
        wanted.show(part.size_bytes, total_bytes)
        if total_bytes is not None and part.size_bytes > total_bytes:
            part.clear()
            raise _SourceFailed(f"it sent more than the {total_bytes} bytes of the file")
    if total_bytes is not None and part.size_bytes < total_bytes:
        raise ConnectionError(f"the connection was cut off {total_bytes - part.size_bytes} bytes before the end")


def _extent(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """The first byte that an answer brings, and the size of the whole file, None where the server does not tell."""
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        told = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if told is None:
            raise ConnectionError("it sent a part of the file without telling which")
        return int(told[1]), None if told[2] == "*" else int(told[2])
    if response.status != http.HTTPStatus.OK:
        raise _SourceFailed(f"{response.status} {response.reason}")
    return 0, response.length


def _version(headers: Message) -> str | None:
    """What If-Range takes to name a version of a file, where the server gives that."""
    etag = headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")


def _refuse_full_disk(part: _Part, *, missing_bytes: int) -> None:
    free_bytes = shutil.disk_usage(part.path.parent).free
    if missing_bytes > free_bytes:
        raise WriteError(
            f"cannot write {part.path}: {missing_bytes / 1e6:,.0f} MB are to come, and the disk has "
            f"{free_bytes / 1e6:,.0f} MB left"
        )


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl):
        _refuse_plain_http(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _refuse_plain_http(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
        raise urllib.error.URLError(f"only https is trusted, and {url} is not")


def _in_words(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    return getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
