import hashlib
import http.server
import re
import socket
import threading

import pytest

from utils import weights
from utils.errors import UserError
from utils.weights import KNOWN, WeightFile, WeightsMissing, locate, sha256_of, verify

CONTENT = bytes(range(256)) * 300
SIZE_BYTES = len(CONTENT)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests += 1
        if self.path == "/redirected":
            self.send_response(302)
            self.send_header("Location", "http://example.org/model.pth")
            self.end_headers()
            return
        if self.path == "/absent":
            self.send_error(404)
            return
        body = b"other" if self.path == "/other" else CONTENT
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:1000] if self.path == "/cut-off" else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requests = 0
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def publish(monkeypatch):
    """Make `model.pth` a known file at a URL."""

    def publish(url, sha256=SHA256, size_bytes=SIZE_BYTES):
        file = WeightFile(name="model.pth", url=url, sha256=sha256, size_bytes=size_bytes)
        monkeypatch.setitem(KNOWN, file.name, file)

    return publish


@pytest.fixture
def root(tmp_path):
    return tmp_path / "not yet there" / "pretrained"


def files_in(root):
    return sorted(path.name for path in root.iterdir()) if root.exists() else []


@pytest.mark.parametrize("spec", ["model.pth", "pretrained/model.pth", "{root}/model.pth"])
def test_known_file_is_downloaded_once_whatever_way_it_is_named(spec, root, server, publish):
    publish(f"{server.url}/right")
    for _ in range(2):
        path = locate(spec.format(root=root), pretrained_root=root)
        assert path.samefile(root / "model.pth")
        assert path.read_bytes() == CONTENT
    assert server.requests == 1
    assert files_in(root) == ["model.pth"]


@pytest.mark.parametrize(
    ("page", "sha256", "size_bytes", "reason"),
    [
        ("other", SHA256, SIZE_BYTES, f"5 bytes where {SIZE_BYTES} were expected"),
        ("other", SHA256, None, f"sha256 {hashlib.sha256(b'other').hexdigest()} where {SHA256}"),
        ("cut-off", SHA256, SIZE_BYTES, "cut off"),
        ("cut-off", None, None, f"cut off {SIZE_BYTES - 1000} bytes before the end"),
        ("absent", SHA256, SIZE_BYTES, "Not Found"),
        ("redirected", SHA256, SIZE_BYTES, "only https is trusted, and http://example.org/model.pth is not"),
    ],
)
def test_failed_download_leaves_nothing_and_tells_where(page, sha256, size_bytes, reason, root, server, publish):
    publish(f"{server.url}/{page}", sha256, size_bytes)
    with pytest.raises(UserError, match=reason) as caught:
        locate("model.pth", pretrained_root=root)
    assert f"{server.url}/{page}" in str(caught.value)
    assert str(root / "model.pth") in str(caught.value)
    assert files_in(root) == []


def test_absent_server_is_told_in_a_sentence(root, publish, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        publish(f"http://127.0.0.1:{unused.getsockname()[1]}/right")
        with pytest.raises(UserError, match="refused"):
            locate("model.pth", pretrained_root=root)
    assert files_in(root) == []


def test_silent_server_is_given_up(root, publish, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(weights, "TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        publish(f"http://127.0.0.1:{silent.getsockname()[1]}/right")
        with pytest.raises(UserError, match="timed out"):
            locate("model.pth", pretrained_root=root)


def test_plain_http_is_refused_beyond_this_machine(root, publish):
    publish("http://example.org/model.pth")
    with pytest.raises(UserError, match="only https is trusted"):
        locate("model.pth", pretrained_root=root)


def test_unpublished_sha256_is_recorded_told_and_compared_with_later(root, server, publish, capsys):
    publish(f"{server.url}/right", sha256=None, size_bytes=None)
    path = locate("model.pth", pretrained_root=root)
    assert (root / "model.pth.sha256").read_text() == f"{SHA256}  model.pth\n"
    assert SHA256 in capsys.readouterr().err
    assert verify(path)

    path.unlink()
    publish(f"{server.url}/other", sha256=None, size_bytes=None)
    with pytest.raises(UserError, match=SHA256):
        locate("model.pth", pretrained_root=root)
    assert files_in(root) == ["model.pth.sha256"]


def test_verify_tells_a_changed_file_and_what_it_cannot_know(tmp_path, publish):
    publish("https://example.org/model.pth")
    path = tmp_path / "model.pth"
    path.write_bytes(CONTENT)
    assert sha256_of(path) == SHA256
    assert verify(path)
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match=f"{SHA256} was expected"):
        verify(path)

    publish("https://example.org/model.pth", sha256=None)
    assert not verify(path)
    path.with_name("my.pth").touch()
    assert not verify(path.with_name("my.pth"))


def test_existing_files_are_taken_as_they_are(tmp_path, root, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root.mkdir(parents=True)
    (root / "mine.pth").touch()
    assert locate("mine.pth", pretrained_root=root) == root / "mine.pth"
    (tmp_path / "mine.pth").touch()
    assert locate("mine.pth", pretrained_root=root).samefile(tmp_path / "mine.pth")
    assert locate(root / "mine.pth", pretrained_root=root) == root / "mine.pth"


@pytest.mark.parametrize("spec", ["pretrained/rrbd.pth", "/elsewhere/RRDB.pth"])
def test_missing_file_is_told_with_the_nearest_known_name(spec, root):
    with pytest.raises(UserError, match=rf"no weight file {spec}.*SwinIR\.pth.*did you mean RRDB\.pth\?"):
        locate(spec, pretrained_root=root)


def test_known_files_can_be_trusted():
    for name, file in KNOWN.items():
        assert name == file.name
        assert file.url.startswith("https://")
        assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)
    # CLIP's URL holds its sha256, torchvision's file names the first digits of theirs.
    assert KNOWN["RN50.pt"].sha256 in KNOWN["RN50.pt"].url
    for name in ("vgg19-dcbb9e9d.pth", "alexnet-owt-7be5be79.pth"):
        assert KNOWN[name].sha256.startswith(name.removesuffix(".pth").rpartition("-")[2])


def test_name_that_no_file_can_have_is_a_missing_file(tmp_path):
    with pytest.raises(WeightsMissing, match="there is no weight file"):
        locate("a" * 300, pretrained_root=tmp_path)
