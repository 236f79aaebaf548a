"""Download a file with pooch, under a temporary name until its SHA-256 has been compared.

And what all downloads share: the variables that forbid them, and the reason why one failed.
"""

import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from sed_sr.data.files import WriteError
from sed_sr.options.errors import UserError

TIMEOUT_S = 10  # to connect, and between two packets
RETRIES = 2  # after a broken connection, a server error or a wrong hash; pooch waits 1 s, then 2 s
CHUNK_BYTES = 1 << 20
LOOPBACK = ("127.0.0.1", "::1", "localhost")
TEMPORARY_ERRORS = (408, 429)  # of the client errors (4xx), those that a retry can solve
OFFLINE = ("SED_OFFLINE", "HF_HUB_OFFLINE")  # if one of them is set to 1, nothing is downloaded


class WeightsMissing(UserError):
    """A weight file does not exist and could not be downloaded."""


class DownloadFailed(UserError):
    """No source sent the file."""


class _Refused(UserError):
    """A retry with the same source would not help."""


def offline_variable() -> str | None:
    """The variable of the environment that forbids downloads; None if they are allowed."""
    return next((name for name in OFFLINE if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")), None)


def download(
    urls: Sequence[str], path: Path, *, sha256: str | None, check: Callable[[Path], object] | None = None
) -> None:
    """Download a file from the first source that sends it; missing folders are created.

    Proxies are read from the environment (`https_proxy`, `no_proxy`).

    Args:
        urls: tried in this order; https, or http on this machine.
        path: the name that the file gets when it is complete.
        sha256: None if it was never published.
        check: called with the complete file before it gets its name; raises UserError if it is of another kind.

    Raises:
        DownloadFailed: no source sent the file; the message has the reason for each.
        WriteError: the file cannot be written (full disk, no permission).
    """
    import pooch  # here, because only a download needs it: requests takes 0.2 s to import
    import requests

    terminal = sys.stderr.isatty()
    pooch.get_logger().setLevel("INFO" if terminal else "WARNING")  # the names of files above the progress bars
    http = pooch.HTTPDownloader(
        progressbar=terminal, chunk_size=CHUNK_BYTES, timeout=TIMEOUT_S, hooks={"response": _check_response}
    )

    def downloader(url: str, temporary: str, fetcher: pooch.Pooch) -> None:
        try:
            http(url, temporary, fetcher)
        except (requests.ConnectionError, requests.Timeout) as error:
            if os.path.getsize(temporary) == 0:  # there is no network or no such server
                raise _Refused(failure_reason(error)) from error
            raise
        os.chmod(temporary, 0o644)  # pooch makes it 0600, which others cannot read in a shared folder
        try:
            if check is not None:
                check(Path(temporary))
        except UserError as error:
            raise _Refused(str(error).replace(temporary, str(path))) from error

    failures = []
    for url in urls:
        if failures:
            print(f"{failures[-1]}; trying {url}", file=sys.stderr)
        registry = {"registry": {path.name: sha256}, "urls": {path.name: url}}
        try:
            _require_https(url)
            fetcher = pooch.create(path=path.parent, base_url="", retry_if_failed=RETRIES, **registry)
            # The type of pooch is too narrow: it passes the arguments by position.
            fetcher.fetch(path.name, downloader=downloader)  # pyright: ignore[reportArgumentType]
        except (UserError, ValueError, requests.RequestException) as error:
            reason = failure_reason(error).partition(". ")[0]  # pooch explains a wrong hash in further sentences
            failures.append(f"{url}: {reason}")
        except OSError as error:  # without a strerror, it is pooch's own PermissionError
            raise WriteError(f"cannot write {path}: {error.strerror or os.strerror(errno.EACCES)}") from error
        else:
            return
    raise DownloadFailed("; ".join(failures))


def _check_response(response, **_) -> None:
    """Called by requests for every response, those that redirect included."""
    _require_https(urljoin(response.url, response.headers.get("Location", "")))
    if 400 <= response.status_code < 500 and response.status_code not in TEMPORARY_ERRORS:
        raise _Refused(f"{response.status_code} {response.reason}")


def _require_https(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
        raise _Refused(f"only https is trusted, and {url} is not https")


def failure_reason(error: Exception) -> str:
    """The error of the operating system behind one of requests, such as `Connection refused`; else its own text."""
    cause = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return str(error)
