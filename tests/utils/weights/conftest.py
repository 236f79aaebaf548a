"""A local server of weight files, and a catalogue with one file on it."""

import http.server
import threading

import pooch
import pytest
import safetensors.torch
import torch
from huggingface_hub import constants

from sed_sr.utils.weights.catalogue import PUBLISHED, WeightFile

CONTENT = safetensors.torch.save({"weight": torch.arange(9)})
PAGE = b"<html>\n<body>Sign in</body></html>"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        if self.path.startswith("/absent"):
            self.send_error(404)
            return
        body = {"/other": b"other", "/page": PAGE}.get(self.path[:6].rstrip("/"), CONTENT)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def isolated(monkeypatch, tmp_path):
    """No mirror, no proxy, no caches of other tools, and no waiting between downloads."""
    for name in ("SED_WEIGHTS_MIRROR", "SED_OFFLINE", "HF_HUB_OFFLINE", "TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(pooch.core.time, "sleep", lambda _: None)


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requests = []
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def publish(isolated, monkeypatch):
    """Make `model.pth` the only file of the catalogue."""

    def publish(url, *, sha256, size_bytes=None, **others):
        file = WeightFile("model.pth", "test", url, sha256, size_bytes, standard=True, **others)
        for name in tuple(PUBLISHED):
            monkeypatch.delitem(PUBLISHED, name)
        monkeypatch.setitem(PUBLISHED, file.name, file)

    return publish


@pytest.fixture
def root(tmp_path):
    return tmp_path / "new folder" / "pretrained"
