"""Whatever a server does, a file gets its name only with the right content."""

import errno
import hashlib
import http.server
import os
import re
import resource
import shutil
import signal
import socket
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pooch
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sed_sr.data.files import WriteError
from sed_sr.options.errors import UserError
from sed_sr.utils.weights import download as module
from sed_sr.utils.weights.download import RETRIES, DownloadFailed, download

CONTENT = bytes(range(256)) * 300
OTHER = CONTENT[::-1]
SIZE_BYTES = len(CONTENT)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass(frozen=True)
class Answer:
    """How the server answers one request."""

    status: int = 200
    body: bytes = CONTENT
    announced_bytes: int | None = None  # Content-Length, if not the true one
    cut_at: int | None = None  # close the connection after so many bytes of the body
    chunked: bool = False
    stall_s: float = 0  # before the connection is closed


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.requests.append(self.path)
        self.close_connection = True
        answer = self.server.script.pop(0) if self.server.script else Answer()
        body = answer.body if answer.status == 200 else b""
        self.send_response(answer.status)
        if answer.status == 302:
            self.send_header("Location", "http://example.org/file")
        if answer.chunked and body:
            self.send_header("Transfer-Encoding", "chunked")
            body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (body[:500], body[500:])) + b"0\r\n\r\n"
        else:
            self.send_header("Content-Length", str(answer.announced_bytes or len(body)))
        self.end_headers()
        self.wfile.write(body[: answer.cut_at])
        self.server.awake.wait(answer.stall_s)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_):
        pass  # clients close connections early


@pytest.fixture(scope="module")
def running():
    with Server(("127.0.0.1", 0), Handler) as server:
        server.awake = threading.Event()
        server.url = f"http://127.0.0.1:{server.server_port}/file"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.awake.set()
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_waiting_and_no_proxy(monkeypatch):
    monkeypatch.setattr(pooch.core.time, "sleep", lambda _: None)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def server(running):
    """A server with a script of answers and a list of requests; it sends CONTENT when the script is over."""
    running.script, running.requests = [], []
    return running


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new folder" / "file.pth"


def fetch(path, *urls, sha256=SHA256, check=None):
    download(urls, path, sha256=sha256, check=check)


def files_in(path):
    return sorted(item.name for item in path.parent.iterdir())


ANSWERS = st.builds(
    Answer,
    status=st.sampled_from([200] * 9 + [204, 302, 404, 500]),
    body=st.sampled_from([CONTENT, OTHER, CONTENT[:-1], b""]),
    announced_bytes=st.sampled_from([None, None, SIZE_BYTES - 1, SIZE_BYTES + 1]),
    cut_at=st.none() | st.integers(0, SIZE_BYTES),
    chunked=st.booleans(),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(script=st.lists(ANSWERS, max_size=8), sources=st.integers(1, 2))
def test_final_name_has_the_published_content_or_does_not_exist(script, sources, server, path):
    """And nothing else is left in the folder."""
    shutil.rmtree(path.parent, ignore_errors=True)
    server.script[:] = script
    try:
        fetch(path, *[server.url] * sources)
    except DownloadFailed:
        assert files_in(path) == []
        server.script.clear()
        fetch(path, server.url)
    assert path.read_bytes() == CONTENT
    assert files_in(path) == ["file.pth"]


@pytest.mark.parametrize("chunked", [False, True])
def test_broken_connection_is_retried_and_never_leaves_a_part_of_the_file(chunked, server, path):
    """Also without a published hash."""
    server.script[:] = [Answer(cut_at=1000, chunked=chunked)] * RETRIES
    fetch(path, server.url, sha256=None)
    assert path.read_bytes() == CONTENT
    assert len(server.requests) == 1 + RETRIES

    path.unlink()
    server.script[:] = [Answer(cut_at=1000, chunked=chunked)] * (1 + RETRIES)
    with pytest.raises(DownloadFailed, match=server.url):
        fetch(path, server.url, sha256=None)
    assert files_in(path) == []


@pytest.mark.parametrize(
    ("answer", "attempts", "reason"),
    [
        (Answer(body=OTHER), 1 + RETRIES, f"expected {SHA256} but got {hashlib.sha256(OTHER).hexdigest()}"),
        (Answer(status=503), 1 + RETRIES, "503 Server Error"),
        (Answer(status=404), 1, "404 Not Found"),
        (Answer(status=302), 1, "only https is trusted, and http://example.org/file is not https"),
    ],
)
def test_next_source_is_tried_if_one_fails_and_the_reason_is_reported(answer, attempts, reason, server, path, capsys):
    server.script[:] = [answer] * attempts
    with pytest.raises(DownloadFailed, match=re.escape(f"{server.url}: ") + f".*{reason}"):
        fetch(path, server.url)
    assert files_in(path) == []
    assert len(server.requests) == attempts

    server.script[:] = [answer] * attempts
    mirror = f"{server.url}-mirror"
    fetch(path, server.url, mirror)
    assert path.read_bytes() == CONTENT
    printed = capsys.readouterr().err
    assert reason in printed
    assert f"trying {mirror}" in printed


def test_file_that_fails_its_check_does_not_get_its_name(server, path):
    def check(temporary):
        assert not path.exists()
        if temporary.read_bytes() != CONTENT:
            raise UserError(f"{temporary} is a page")

    server.script[:] = [Answer(body=OTHER)]
    with pytest.raises(DownloadFailed, match=re.escape(f"{server.url}: {path} is a page")):
        fetch(path, server.url, sha256=None, check=check)
    assert files_in(path) == []

    server.script[:] = [Answer(body=OTHER)]
    fetch(path, server.url, f"{server.url}-mirror", sha256=None, check=check)
    assert path.read_bytes() == CONTENT


def test_interrupted_download_leaves_nothing(server, path):
    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(path, server.url, check=interrupt)
    assert files_in(path) == []


def test_two_downloads_at_once_both_end_with_the_file(server, path):
    """Two commands of a user, which do not know of each other."""
    server.script[:] = [Answer(stall_s=0.1)] * 2
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda _: fetch(path, server.url), range(2)))
    assert path.read_bytes() == CONTENT
    assert files_in(path) == ["file.pth"]


def test_file_can_be_read_by_others(server, path):
    fetch(path, server.url)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.fixture
def no_retries(monkeypatch):
    monkeypatch.setattr(pooch.core.time, "sleep", lambda _: pytest.fail("it waited for a retry"))


def test_server_that_does_not_answer_is_given_up_without_retries(path, monkeypatch, no_retries):
    monkeypatch.setattr(module, "TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(DownloadFailed, match="timed out"):
        fetch(path, f"http://127.0.0.1:{silent.getsockname()[1]}/file")


def test_refused_connection_is_reported_without_retries_and_nothing_else_is_printed(path, no_retries, capsys):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, not listening
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/file"
        with pytest.raises(DownloadFailed) as caught:
            fetch(path, url)
    assert str(caught.value) == f"{url}: {os.strerror(errno.ECONNREFUSED)}"
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "url",
    ["http://example.org/file", "ftp://127.0.0.1/file", "file:///etc/passwd", "https://[", "https://", "x"],
)
def test_wrong_or_untrusted_address_is_a_reason(url, path):
    with pytest.raises(DownloadFailed, match=re.escape(f"{url}: ")):
        fetch(path, url)


def test_full_disk_is_reported_and_leaves_nothing(server, path):
    """A limit on the size of files stands for a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(WriteError, match=re.escape(f"cannot write {path}: {os.strerror(errno.EFBIG)}")):
            fetch(path, server.url)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert files_in(path) == []


def test_missing_permission_is_reported(server, path, monkeypatch):
    def refuse(**_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    path.parent.mkdir()
    monkeypatch.setattr(pooch.utils.tempfile, "NamedTemporaryFile", refuse)  # root may write anywhere
    with pytest.raises(WriteError, match=re.escape(f"cannot write {path}: {os.strerror(errno.EACCES)}")):
        fetch(path, server.url)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_proxy_of_the_environment_is_used(scheme, path, monkeypatch):
    """The first line tells a request to a proxy: GET with the whole URL, or CONNECT."""
    requests = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer():
            connection, _ = listening.accept()
            with connection:
                requests.append(connection.recv(1 << 16).decode().split()[:2])
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE_BYTES + CONTENT)

        thread = threading.Thread(target=answer)
        thread.start()
        monkeypatch.setattr(module, "RETRIES", 0)
        monkeypatch.setenv(f"{scheme}_proxy", f"http://127.0.0.1:{listening.getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "")
        if scheme == "http":
            fetch(path, "http://localhost:9/file")
            assert path.read_bytes() == CONTENT
        else:
            with pytest.raises(DownloadFailed, match=r"https://example\.org/file: "):  # no TLS follows
                fetch(path, "https://example.org/file")
        thread.join()
    assert requests == [["GET", "http://localhost:9/file"] if scheme == "http" else ["CONNECT", "example.org:443"]]
