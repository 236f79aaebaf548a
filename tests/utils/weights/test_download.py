"""Whatever a server does, the final name bears the right bytes or does not exist."""

import errno
import hashlib
import http.server
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sed_sr.data.files import WriteError
from sed_sr.options.errors import UserError
from sed_sr.utils.weights import download as module
from sed_sr.utils.weights.download import DownloadFailed, download, part_of

ROOT = Path(__file__).parents[3]
CONTENT = bytes(range(256)) * 300
OTHER = CONTENT[::-1]
SIZE_BYTES = len(CONTENT)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass(frozen=True)
class Answer:
    """How the server answers one request: honestly, unless told otherwise."""

    status: int | None = None  # an error, or a redirect
    body: bytes = CONTENT
    version: str | None = '"1"'  # ETag
    announced_bytes: int | None = None  # Content-Length, where it is not the truth
    chunked: bool = False
    cut_at: int | None = None  # close the connection after so many bytes of the body
    stall_s: float = 0  # before the connection is closed
    knows_ranges: bool = True
    knows_if_range: bool = True
    shift: int = 0  # send the range that begins so many bytes later


HONEST = Answer()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.requests.append(self.headers)
        self.close_connection = True
        answer = self.server.script.pop(0) if self.server.script else HONEST
        if answer.status is not None:
            self.send_response(answer.status)
            self.send_header("Location", "http://example.org/file")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body, first_byte = answer.body, 0
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same_version = not answer.knows_if_range or self.headers.get("If-Range") == answer.version
        if wanted and answer.knows_ranges and same_version:
            first_byte = int(wanted[1]) + answer.shift
            if first_byte >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first_byte}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        if answer.version:
            self.send_header("ETag", answer.version)
        body = body[first_byte:]
        if answer.chunked:
            self.send_header("Transfer-Encoding", "chunked")
            body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (body[:500], body[500:])) + b"0\r\n\r\n"
        else:
            self.send_header("Content-Length", str(answer.announced_bytes or len(body)))
        self.end_headers()
        self.wfile.write(body[: answer.cut_at])
        if answer.stall_s:
            self.server.awake.wait(answer.stall_s)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_):
        pass  # clients are killed here


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


@pytest.fixture
def server(running, monkeypatch):
    """A server with a script of answers, and a list of the requests' headers; honest when the script is over."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(module, "PAUSES_S", (0.001, 0.001))
    running.script, running.requests = [], []
    running.awake.clear()
    return running


@pytest.fixture
def path(tmp_path):
    return tmp_path / "not yet there" / "file.pth"


def fetch(path, *urls, size_bytes=SIZE_BYTES, sha256=SHA256, check=None):
    download(urls, path, size_bytes=size_bytes, sha256=sha256, check=check)


def files_in(path):
    return sorted(item.name for item in path.parent.iterdir())


def ranges(server):
    return [headers.get("Range") for headers in server.requests]


PART = ["file.pth.part", "file.pth.part.source"]
CUTS = st.one_of(st.none(), st.integers(0, SIZE_BYTES))
# A weak ETag tells versions apart that matter to readers, not those that differ in bytes.
HONEST_VERSIONS = st.sampled_from(
    [(CONTENT, '"1"'), (OTHER, '"2"'), (CONTENT, None), (CONTENT, 'W/"3"'), (OTHER, 'W/"3"')]
)
HONEST_ANSWERS = st.builds(
    lambda version, **other: Answer(body=version[0], version=version[1], **other),
    HONEST_VERSIONS,
    cut_at=CUTS,
    chunked=st.booleans(),
    knows_ranges=st.booleans(),
    knows_if_range=st.booleans(),
    status=st.sampled_from([None] * 9 + [302, 404, 416, 500]),
)
ANY_ANSWERS = st.builds(
    Answer,
    body=st.sampled_from([CONTENT, OTHER, CONTENT[:-1], b""]),
    version=st.sampled_from(['"1"', '"2"', None]),
    announced_bytes=st.sampled_from([None, SIZE_BYTES, SIZE_BYTES - 1, SIZE_BYTES + 1]),
    cut_at=CUTS,
    knows_ranges=st.booleans(),
    knows_if_range=st.booleans(),
    shift=st.sampled_from([0, 0, 1]),
    status=st.sampled_from([None] * 9 + [204, 302, 404, 416, 500]),
)
MANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@MANY
@given(script=st.lists(ANY_ANSWERS, max_size=6), sources=st.integers(1, 2))
def test_final_name_bears_the_published_bytes_or_does_not_exist(script, sources, server, path):
    """And an honest server brings them afterwards, whatever lies there."""
    shutil.rmtree(path.parent, ignore_errors=True)
    server.script[:] = script
    try:
        fetch(path, *[server.url] * sources)
    except DownloadFailed:
        assert not path.exists()
    else:
        assert path.read_bytes() == CONTENT
    server.script.clear()
    fetch(path, server.url)
    assert path.read_bytes() == CONTENT
    assert files_in(path) == ["file.pth"]


@MANY
@given(script=st.lists(HONEST_ANSWERS, max_size=6))
def test_file_without_published_figures_is_one_whole_version_of_it(script, server, path):
    """Versions are never spliced, as long as the server names them, and nothing that was cut off passes for whole."""
    shutil.rmtree(path.parent, ignore_errors=True)
    server.script[:] = script
    for _ in range(2):
        try:
            fetch(path, server.url, size_bytes=None, sha256=None)
        except DownloadFailed:
            assert not path.exists()
    assert not path.exists() or path.read_bytes() in (CONTENT, OTHER)


def test_broken_line_is_taken_up_where_it_broke(server, path):
    """As often as it brings something: there are more cuts here than pauses."""
    cuts = [1000, 20_000, 1, 3000, 30_000]
    server.script[:] = [Answer(cut_at=cut) for cut in cuts]
    fetch(path, server.url)
    assert path.read_bytes() == CONTENT
    reached = [sum(cuts[:count]) for count in range(1, len(cuts) + 1)]
    assert ranges(server) == [None, *(f"bytes={count}-" for count in reached)]
    assert {headers["If-Range"] for headers in server.requests[1:]} == {'"1"'}
    assert files_in(path) == ["file.pth"]


def test_line_that_brings_nothing_more_is_given_up_and_the_part_kept_for_the_next_time(server, path):
    server.script[:] = [Answer(cut_at=1000), *[Answer(cut_at=0)] * 3]
    kept = re.escape(f"the first 1000 bytes are kept in {part_of(path)}")
    with pytest.raises(DownloadFailed, match=rf"{server.url}: .*cut off {SIZE_BYTES - 1000} bytes.*{kept}"):
        fetch(path, server.url)
    assert files_in(path) == PART
    fetch(path, server.url)
    assert path.read_bytes() == CONTENT
    assert ranges(server)[-1] == "bytes=1000-"
    assert files_in(path) == ["file.pth"]


def test_pauses_between_attempts_grow(server, path, monkeypatch):
    pauses_s = []
    monkeypatch.setattr(module, "PAUSES_S", (1, 2, 4))
    monkeypatch.setattr(module.time, "sleep", pauses_s.append)
    server.script[:] = [Answer(cut_at=1000), Answer(status=503), Answer(cut_at=10), *[Answer(status=500)] * 3]
    with pytest.raises(DownloadFailed, match="500 Internal Server Error"):
        fetch(path, server.url)
    assert pauses_s == [1, 2, 1, 2, 4]


@pytest.mark.parametrize(
    "second",
    [
        {"knows_ranges": False},
        {"version": '"2"'},
        {"version": '"2"', "knows_if_range": False},
        {"version": None, "knows_if_range": False},
        {"shift": 1},
    ],
)
def test_server_that_cannot_continue_the_same_version_starts_over(second, server, path):
    """The beginning is another version's, so that a continuation would give other bytes."""
    server.script[:] = [Answer(body=OTHER, cut_at=1000), Answer(**second)]
    fetch(path, server.url, sha256=None)
    assert path.read_bytes() == CONTENT


def test_part_without_a_version_is_not_kept(server, path):
    server.script[:] = [Answer(cut_at=1000, version=None)] * 3
    with pytest.raises(DownloadFailed, match=r"cut off \d+ bytes before the end$"):
        fetch(path, server.url)
    assert files_in(path) == []
    assert ranges(server) == [None] * 3


def test_whole_part_is_finished_without_asking_for_more(server, path):
    """The process was killed between the last byte and the final name; where no size is known, the server is asked."""
    for size_bytes, requests in ((SIZE_BYTES, 0), (None, 1)):
        server.requests.clear()
        path.unlink(missing_ok=True)
        path.parent.mkdir(exist_ok=True)
        part_of(path).write_bytes(CONTENT)
        part_of(path).with_name(PART[1]).write_text(f'{server.url}\n"1"\n')
        fetch(path, server.url, size_bytes=size_bytes)
        assert path.read_bytes() == CONTENT
        assert files_in(path) == ["file.pth"]
        assert ranges(server) == [f"bytes={SIZE_BYTES}-"] * requests


def test_damaged_part_of_an_earlier_time_is_replaced(server, path):
    path.parent.mkdir()
    part_of(path).write_bytes(bytes(5000))
    part_of(path).with_name(PART[1]).write_text(f'{server.url}\n"1"\n')
    fetch(path, server.url)
    assert path.read_bytes() == CONTENT
    assert ranges(server) == ["bytes=5000-", None]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(body=OTHER), f"sha256 {hashlib.sha256(OTHER).hexdigest()} where {SHA256} was expected"),
        (Answer(announced_bytes=SIZE_BYTES + 1), f"offers {SIZE_BYTES + 1} bytes where {SIZE_BYTES} are expected"),
        (Answer(body=CONTENT + b"x", chunked=True), f"more than the {SIZE_BYTES} bytes"),
        (Answer(status=204), "204 No Content"),
        (Answer(status=404), "404 Not Found"),
        (Answer(status=302), "only https is trusted, and http://example.org/file is not"),
    ],
)
def test_next_source_is_asked_where_one_fails_and_the_reason_is_told(answer, reason, server, path, capsys):
    server.script[:] = [answer]
    with pytest.raises(DownloadFailed, match=re.escape(f"{server.url}: ") + f".*{reason}"):
        fetch(path, server.url)
    assert files_in(path) == []
    assert len(server.requests) == 1

    server.script[:] = [answer]
    mirror = f"{server.url}-mirror"
    fetch(path, server.url, mirror)
    assert path.read_bytes() == CONTENT
    told = capsys.readouterr().err
    assert reason in told
    assert f"trying {mirror}" in told


def test_file_that_does_not_pass_its_check_is_none(server, path):
    def check(part):
        assert not path.exists()
        if part.read_bytes() != CONTENT:
            raise UserError("it is a page")

    server.script[:] = [Answer(body=OTHER)]
    with pytest.raises(DownloadFailed, match=re.escape(f"{server.url}: it brought another file: it is a page")):
        fetch(path, server.url, sha256=None, check=check)
    assert files_in(path) == []

    server.script[:] = [Answer(body=OTHER)]
    fetch(path, server.url, f"{server.url}-mirror", sha256=None, check=check)
    assert path.read_bytes() == CONTENT


def test_wrong_size_is_refused_before_the_file_is_sent(server, path):
    server.script[:] = [Answer(announced_bytes=10 * SIZE_BYTES, cut_at=0, stall_s=20)]
    started_s = time.monotonic()
    with pytest.raises(DownloadFailed, match=f"offers {10 * SIZE_BYTES} bytes"):
        fetch(path, server.url)
    assert time.monotonic() - started_s < 10


def test_part_of_a_source_that_failed_outlives_one_that_never_answers(server, path):
    server.script[:] = [Answer(cut_at=1000), *[Answer(cut_at=0)] * 2]
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        with pytest.raises(DownloadFailed, match=r"1000 bytes are kept.*; .*Connection refused"):
            fetch(path, server.url, f"http://127.0.0.1:{unused.getsockname()[1]}/file")
    assert files_in(path) == PART


def test_stalled_connection_is_cut_and_continued(server, path, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT_S", 0.2)
    server.script[:] = [Answer(cut_at=1000, stall_s=20)]
    fetch(path, server.url)
    assert path.read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=1000-"]


def test_server_that_never_answers_is_given_up_at_once(path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(module, "TIMEOUT_S", 0.1)
    monkeypatch.setattr(module.time, "sleep", lambda _: pytest.fail("it waited"))
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(DownloadFailed, match="timed out"):
        fetch(path, f"http://127.0.0.1:{silent.getsockname()[1]}/file")


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/file",
        "ftp://127.0.0.1/file",
        "file:///etc/passwd",
        "https://[",
        "https://",
        "x",
        "https://h:p/",
    ],
)
def test_address_that_is_wrong_or_not_to_be_trusted_is_a_reason(url, path):
    with pytest.raises(DownloadFailed, match=re.escape(f"{url}: ")):
        fetch(path, url)


def test_file_of_unknown_size_and_sha256_must_tell_where_it_ends(path, monkeypatch):
    """Where nothing but the end of the connection ends a file, one that was cut off would look whole."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer():
            connection, _ = listening.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + CONTENT)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(DownloadFailed, match="how large"):
            fetch(path, f"http://127.0.0.1:{listening.getsockname()[1]}/file", size_bytes=None, sha256=None)
        thread.join()
    assert files_in(path) == []


def test_full_disk_is_told_before_the_download(server, path, monkeypatch):
    server.script[:] = [Answer(cut_at=10, stall_s=20)]
    left = shutil.disk_usage(path.parent.parent)._replace(free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: left)
    with pytest.raises(WriteError, match="disk"):
        fetch(path, server.url)
    assert not path.exists()


def test_disk_that_fills_up_keeps_the_part_and_tells(server, path, monkeypatch):
    """A limit on the size of files stands for a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(WriteError, match=re.escape(f"cannot write {part_of(path)}: {os.strerror(errno.EFBIG)}")):
            fetch(path, server.url)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert part_of(path).stat().st_size == 20_000
    fetch(path, server.url)
    assert path.read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=20000-"]


PROGRAM = """
import sys
import time
from pathlib import Path
from sed_sr.utils.weights import download
from sed_sr.options.cli import run

url, path, size_bytes, sha256 = sys.argv[1:]
download.PAUSES_S = (0.01,)

def check(part):
    part.read_bytes()  # and close it, which must not let other processes in
    time.sleep(0.3)

run(lambda: download.download([url], Path(path), size_bytes=int(size_bytes), sha256=sha256, check=check) or 0)
"""


@pytest.fixture
def start(path, server):
    """Starts a download in a process of its own."""
    processes = []

    def start_one():
        words = [sys.executable, "-c", PROGRAM, server.url, path, SIZE_BYTES, SHA256]
        process = subprocess.Popen(
            [str(word) for word in words],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
            # where the tests run in the background of a shell, Ctrl-C would be ignored
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        processes.append(process)
        return process

    yield start_one
    for process in processes:
        process.kill()
        process.communicate()


def wait_for(condition, timeout_s=30):
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_another_process_goes_on_where_one_was_stopped(sign, code, server, path, start):
    server.script[:] = [Answer(cut_at=30_000, stall_s=20)]
    process = start()
    wait_for(lambda: part_of(path).exists() and part_of(path).stat().st_size == 30_000)
    process.send_signal(sign)
    _, told = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in told
    assert files_in(path) == PART
    assert start().wait(30) == 0
    assert path.read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=30000-"]
    assert files_in(path) == ["file.pth"]


def test_of_two_processes_one_downloads_and_the_other_waits_for_it(server, path, start):
    server.script[:] = [Answer(cut_at=30_000, stall_s=1.5), *[Answer(cut_at=10_000)] * 2]
    processes = [start()]
    wait_for(lambda: server.requests)
    processes.append(start())
    told = [process.communicate(timeout=30)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert "waiting" in told[1]
    assert ranges(server) == [None, "bytes=30000-", "bytes=40000-", "bytes=50000-"]
    assert path.read_bytes() == CONTENT
    assert files_in(path) == ["file.pth"]


@pytest.mark.parametrize("end", ["killed", "given up"])
def test_process_that_waited_in_vain_downloads_itself(end, server, path, start):
    """The part of the killed one is continued; the one that gives up removes its part, which has no version."""
    server.script[:] = [Answer(cut_at=30_000, stall_s=20, version='"1"' if end == "killed" else None)]
    first = start()
    wait_for(lambda: part_of(path).exists() and part_of(path).stat().st_size == 30_000)
    second = start()
    assert "waiting" in second.stderr.readline()
    if end == "killed":
        first.kill()
    else:
        server.script[:] = [Answer(status=404)]
        server.awake.set()
        assert first.wait(30) == 2
    assert second.wait(30) == 0
    assert path.read_bytes() == CONTENT
    assert ranges(server) == ([None, "bytes=30000-"] if end == "killed" else [None] * 3)
    assert files_in(path) == ["file.pth"]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_proxy_of_the_environment_is_asked(scheme, path, monkeypatch):
    """By its first line a proxy is told from a server: GET with the whole URL, or CONNECT."""
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer():
            connection, _ = listening.accept()
            with connection:
                asked.append(connection.recv(1 << 16).decode().split()[:2])
                if scheme == "http":
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE_BYTES + CONTENT)
                else:
                    connection.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        monkeypatch.setenv(f"{scheme}_proxy", f"http://127.0.0.1:{listening.getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "")
        if scheme == "http":
            fetch(path, "http://localhost:9/file")
            assert path.read_bytes() == CONTENT
        else:
            with pytest.raises(DownloadFailed, match="407 Proxy Authentication Required"):
                fetch(path, "https://example.org/file")
        thread.join()
    assert asked == [["GET", "http://localhost:9/file"] if scheme == "http" else ["CONNECT", "example.org:443"]]
