"""The pretrained weights that the recipes start from: where they lie, where they come from, whether they are intact."""

import difflib
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from utils.errors import UserError
from utils.files import WriteError, atomic_writer, write_text

TIMEOUT_S = 10  # to connect, and between two pieces
PIECE_BYTES = 1 << 20
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class WeightsMissing(UserError):
    """A weight file is not there and cannot be had."""


@dataclass(frozen=True)
class WeightFile:
    """A published weight file."""

    name: str  # of the file on disk
    url: str
    sha256: str | None  # None: never published; recorded at the first download
    size_bytes: int | None


KNOWN = {
    file.name: file
    for file in (
        WeightFile(
            name="RRDB.pth",
            url="https://github.com/cszn/KAIR/releases/download/v1.0/RRDB.pth",
            sha256=None,
            size_bytes=None,
        ),
        WeightFile(
            name="SwinIR.pth",
            url="https://github.com/JingyunLiang/SwinIR/releases/download/v0.0/"
            "001_classicalSR_DF2K_s64w8_SwinIR-M_x4.pth",
            sha256="4e78e33f22c1aa8a773db0cf4a7381bae97c2362c717f155439ebc690cbd9215",
            size_bytes=67_869_037,
        ),
        WeightFile(
            name="RN50.pt",
            url="https://openaipublic.azureedge.net/clip/models/"
            "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/RN50.pt",
            sha256="afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
            size_bytes=255_827_503,
        ),
        WeightFile(
            name="vgg19-dcbb9e9d.pth",
            url="https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",
            sha256="dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44",
            size_bytes=574_673_361,
        ),
        WeightFile(
            name="alexnet-owt-7be5be79.pth",
            url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
            sha256="7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
            size_bytes=244_408_911,
        ),
    )
}


def locate(spec: str | Path, *, pretrained_root: Path) -> Path:
    """The path of a weight file, which is downloaded first if it is a known one and not there yet.

    Args:
        spec: a path (relative ones: from the working directory, else inside `pretrained_root`), or the name of a
            known file, alone (`RRDB.pth`) or with the folder's (`pretrained/RRDB.pth`).
        pretrained_root: the folder of pretrained weights, created when a download needs it.

    Raises:
        WeightsMissing: there is no such file, or its download failed or brought other bytes than the published ones.
        UserError: a file in `pretrained_root` is not what its name says.
    """
    spec = Path(spec).expanduser()
    names_the_folder = spec.parts[:1] == (pretrained_root.name,)
    inside = (pretrained_root.parent if names_the_folder else pretrained_root) / spec
    for path in (spec, inside):
        if os.path.exists(path):  # which is False, and no error, for a name too long to be one
            if path.parent.resolve() == pretrained_root.resolve():
                verify(path)
            return path
    known = KNOWN.get(spec.name)
    if known and pretrained_root.resolve() in (spec.parent.resolve(), inside.parent.resolve()):
        path = pretrained_root / known.name
        _download(known, path)
        return path
    names = {name.lower(): name for name in KNOWN}
    nearest = difflib.get_close_matches(spec.name.lower(), names, n=1)
    suggestion = f"; did you mean {names[nearest[0]]}?" if nearest else ""
    looked_in = " nor ".join(dict.fromkeys(str(path) for path in (spec, inside)))
    raise WeightsMissing(
        f"there is no weight file {spec}: it is not at {looked_in}, and the files that can be downloaded to "
        f"{pretrained_root} are {', '.join(KNOWN)}{suggestion}"
    )


def verify(path: Path) -> bool:
    """Compare a file with the published sha256 of its name, or with the one recorded beside it when it was downloaded.

    Returns:
        True if it is that file, False if there is nothing to compare it with.

    Raises:
        UserError: it is another file than its name says.
    """
    expected = _expected_sha256(path)
    if expected is None:
        return False
    found = sha256_of(path)
    if found != expected:
        raise UserError(f"{path} has the sha256 {found}, but {expected} was expected: delete it and fetch it again")
    return True


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _expected_sha256(path: Path) -> str | None:
    known = KNOWN.get(path.name)
    if known and known.sha256:
        return known.sha256
    record = _record_of(path)
    words = record.read_text().split() if record.exists() else []
    return words[0] if words else None


def _record_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _download(file: WeightFile, path: Path) -> None:
    expected = _expected_sha256(path)
    digest = hashlib.sha256()
    size_bytes = 0
    try:
        with atomic_writer(path) as out, closing(_pieces(file, path)) as pieces:
            for piece in pieces:
                out.write(piece)
                digest.update(piece)
                size_bytes += len(piece)
            found = digest.hexdigest()
            if file.size_bytes not in (None, size_bytes):
                raise _failed(file, path, f"it brought {size_bytes} bytes where {file.size_bytes} were expected")
            if expected not in (None, found):
                raise _failed(file, path, f"it brought a file with the sha256 {found} where {expected} was expected")
    except WriteError as error:
        raise _failed(file, path, str(error)) from error
    if expected is None:
        write_text(_record_of(path), f"{found}  {path.name}\n")
        Console(stderr=True).print(
            f"The sha256 of {path.name} was never published; that of this download, {found}, is kept in "
            f"{_record_of(path)}, and later checks compare with it.",
            soft_wrap=True,
            highlight=False,
        )


def _pieces(file: WeightFile, path: Path) -> Iterator[bytes]:
    """The bytes of `file` as they arrive, under a progress bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    try:
        _refuse_plain_http(file.url)
        with (
            urllib.request.build_opener(_SafeRedirects).open(file.url, timeout=TIMEOUT_S) as response,
            Progress(*columns, console=Console(stderr=True)) as progress,
        ):
            missing = response.length  # counts down as the response is read; None where the server does not tell
            bar = progress.add_task(f"Downloading {file.name}", total=missing)
            while piece := response.read(PIECE_BYTES):
                yield piece
                progress.advance(bar, len(piece))
            if response.length:
                raise _failed(file, path, f"the connection was cut off {response.length} bytes before the end")
    except (OSError, http.client.HTTPException) as error:
        raise _failed(file, path, str(getattr(error, "reason", error))) from error


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl):
        _refuse_plain_http(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _refuse_plain_http(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
        raise urllib.error.URLError(f"only https is trusted, and {url} is not")


def _failed(file: WeightFile, path: Path, reason: str) -> WeightsMissing:
    return WeightsMissing(f"{file.url} could not be downloaded: {reason}; put the file at {path} by hand")
