import hashlib
import http.server
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from unittest.mock import Mock

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch

from sed_sr.options.cli import run
from sed_sr.options.errors import UserError
from sed_sr.utils.weights import pretrained
from sed_sr.utils.weights.download import part_of
from sed_sr.utils.weights.pretrained import KNOWN, WeightFile, WeightsMissing, locate, sha256_of, verify

ROOT = Path(__file__).parents[3]
CONTENT = safetensors.torch.save({"weight": torch.arange(9)})
PAGE = b"<html>\n<body>Sign in</body></html>"
SIZE_BYTES = len(CONTENT)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        if self.path.startswith("/absent"):
            self.send_error(404)
            return
        body = {"/other": b"other", "/page": PAGE}.get(self.path[:6].rstrip("/"), CONTENT)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"1"')
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(autouse=True)
def nothing_but_what_a_test_gives(monkeypatch, tmp_path):
    """No mirror, no proxy, and no folders of other tools."""
    for name in ("SED_WEIGHTS_MIRROR", "SED_OFFLINE", "HF_HUB_OFFLINE", "TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


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
def publish(monkeypatch):
    """Make `model.pth` the known file, at these URLs."""

    def publish(*urls, sha256=SHA256, size_bytes=SIZE_BYTES, **others):
        file = WeightFile("model.pth", purpose="test", urls=urls, sha256=sha256, size_bytes=size_bytes, **others)
        for name in tuple(KNOWN):
            monkeypatch.delitem(KNOWN, name)
        monkeypatch.setitem(KNOWN, file.name, file)

    return publish


@pytest.fixture
def command(root, monkeypatch, capsys):
    """Runs `python -m utils.weights` in this process; returns its exit code and what it said."""

    def run_it(*words):
        monkeypatch.setattr(sys, "argv", ["pretrained.py", *words, "--pretrained_root", str(root)])
        with pytest.raises(SystemExit) as ending:
            run(pretrained.main)
        told = capsys.readouterr()
        return ending.value.code, told.out + told.err

    return run_it


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
    assert server.requests == ["/right"]
    assert files_in(root) == ["model.pth"]


@pytest.mark.parametrize(("page", "reason"), [("other", f"5 bytes where {SIZE_BYTES}"), ("absent", "404 Not Found")])
def test_failed_download_leaves_nothing_and_tells_where_to_put_the_file(page, reason, root, server, publish):
    publish(f"{server.url}/{page}")
    with pytest.raises(WeightsMissing, match=reason) as caught:
        locate("model.pth", pretrained_root=root)
    assert f"{server.url}/{page}" in str(caught.value)
    assert f"put it at {root / 'model.pth'}" in str(caught.value)
    assert files_in(root) == []


def test_folder_that_cannot_be_written_to_is_told(tmp_path, publish):
    publish("https://example.org/model.pth")
    (tmp_path / "file").touch()
    with pytest.raises(WeightsMissing, match="cannot write"):
        locate("model.pth", pretrained_root=tmp_path / "file")


def test_mirror_is_asked_first_and_must_bring_the_same_bytes(root, server, publish, monkeypatch):
    publish(f"{server.url}/right")
    monkeypatch.setenv("SED_WEIGHTS_MIRROR", f"{server.url}/mirror/")
    assert locate("model.pth", pretrained_root=root).read_bytes() == CONTENT
    assert server.requests == ["/mirror/model.pth"]

    server.requests.clear()
    (root / "model.pth").unlink()
    monkeypatch.setenv("SED_WEIGHTS_MIRROR", f"{server.url}/other")
    assert locate("model.pth", pretrained_root=root).read_bytes() == CONTENT
    assert server.requests == ["/other/model.pth", "/right"]


def test_mirror_without_encryption_is_not_asked(root, server, publish, monkeypatch, capsys):
    publish(f"{server.url}/right")
    monkeypatch.setenv("SED_WEIGHTS_MIRROR", "http://mirror.example.org")
    assert locate("model.pth", pretrained_root=root).read_bytes() == CONTENT
    assert "only https is trusted, and http://mirror.example.org/model.pth is not" in capsys.readouterr().err


@pytest.mark.parametrize("variable", ["SED_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_machine_tries_no_connection_and_says_what_to_fetch(variable, root, server, publish, monkeypatch):
    publish(f"{server.url}/right")
    monkeypatch.setenv(variable, "1")
    with pytest.raises(WeightsMissing) as caught:
        locate("model.pth", pretrained_root=root)
    for part in (variable, f"{server.url}/right", str(root / "model.pth")):
        assert part in str(caught.value)
    assert server.requests == []
    monkeypatch.setenv(variable, "0")
    locate("model.pth", pretrained_root=root)


@pytest.mark.parametrize("variable", ["TORCH_HOME", "XDG_CACHE_HOME", None])
def test_file_that_torch_hub_has_downloaded_is_used_where_it_lies(
    variable, tmp_path, root, server, publish, command, monkeypatch
):
    """torch itself says where that is."""
    publish(f"{server.url}/right")
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "elsewhere"))
    copy = Path(torch.hub.get_dir(), "checkpoints", "model.pth")
    copy.parent.mkdir(parents=True)
    copy.write_bytes(CONTENT)
    assert locate("model.pth", pretrained_root=root) == copy
    assert command("verify") == (0, f"{copy}: its sha256 is right\n")
    assert server.requests == files_in(root) == []

    copy.write_bytes(b"another")
    assert locate("model.pth", pretrained_root=root) == root / "model.pth"


def test_file_that_clip_has_downloaded_is_used_where_it_lies(tmp_path, root, server, publish):
    publish(f"{server.url}/right")
    copy = tmp_path / "home/.cache/clip/model.pth"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(CONTENT)
    assert locate("model.pth", pretrained_root=root) == copy
    assert server.requests == []


@pytest.fixture
def hub_copy(tmp_path):
    """What huggingface_hub has downloaded: a link to a file that is called by its sha256."""
    repository = tmp_path / "hub/models--timm--model"
    blob, link = repository / "blobs" / SHA256, repository / "snapshots/1/model.safetensors"
    newest = repository / "refs/main"
    for path in (blob, link, newest):
        path.parent.mkdir(parents=True)
    blob.write_bytes(CONTENT)
    link.symlink_to(blob)
    newest.write_text("1")
    return link


def test_file_that_huggingface_hub_has_downloaded_is_used_where_it_lies(hub_copy, root, server, publish, command):
    publish(f"{server.url}/right", sha256=None, size_bytes=None, hub_repository="timm/model")
    assert huggingface_hub.try_to_load_from_cache("timm/model", "model.safetensors") == str(hub_copy)
    assert locate("model.pth", pretrained_root=root) == hub_copy
    code, told = command("fetch", "model.pth")
    assert (code, str(hub_copy) in told) == (0, True)
    assert str(hub_copy.parent) in "".join(command("list")[1].split())  # long paths are folded
    assert server.requests == files_in(root) == []

    hub_copy.write_bytes(CONTENT[:-1])
    assert locate("model.pth", pretrained_root=root) == root / "model.pth"


def test_copy_in_huggingface_hubs_cache_must_be_what_was_downloaded_first(hub_copy, root, server, publish):
    """Authors may publish other weights under the same name."""
    publish(f"{server.url}/right", sha256=None, size_bytes=None, hub_repository="timm/model")
    root.mkdir(parents=True)
    (root / "model.pth.sha256").write_text(f"{'0' * 64}  model.pth\n")
    with pytest.raises(WeightsMissing, match="0000"):
        locate("model.pth", pretrained_root=root)
    assert server.requests == ["/right"]


def test_weights_of_any_model_of_timm_are_known_by_its_name(root, server, command, monkeypatch):
    monkeypatch.setenv("SED_WEIGHTS_MIRROR", server.url)
    name = "resnet18.a1_in1k.safetensors"
    assert name not in KNOWN
    assert locate(name, pretrained_root=root).read_bytes() == CONTENT
    assert (root / f"{name}.sha256").read_text().startswith(SHA256)
    assert command("fetch", name)[0] == 0
    assert server.requests == [f"/{name}"]
    code, told = command("fetch", "resnet18.a1_in1.safetensors")
    assert (code, "none of the files that can be fetched" in told) == (2, True)
    with pytest.raises(WeightsMissing, match="there is no weight file"):
        locate("generator.safetensors", pretrained_root=root)


def test_copy_of_other_tools_that_cannot_be_verified_is_not_used(tmp_path, root, server, publish):
    publish(f"{server.url}/right", sha256=None)
    copy = tmp_path / "home/.cache/clip/model.pth"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(b"unknown")
    assert locate("model.pth", pretrained_root=root) == root / "model.pth"


def test_unpublished_sha256_is_recorded_told_and_compared_with_later(root, server, publish, capsys):
    publish(f"{server.url}/right", sha256=None, size_bytes=None)
    path = locate("model.pth", pretrained_root=root)
    assert (root / "model.pth.sha256").read_text() == f"{SHA256}  model.pth\n"
    assert SHA256 in capsys.readouterr().err
    assert verify(path)

    path.unlink()
    publish(f"{server.url}/other", sha256=None, size_bytes=None)
    with pytest.raises(WeightsMissing, match=SHA256):
        locate("model.pth", pretrained_root=root)
    assert files_in(root) == ["model.pth.sha256"]


def test_what_was_never_published_must_open_as_weights_before_it_gets_its_name(root, server, publish, capsys):
    publish(f"{server.url}/page", sha256=None, size_bytes=None)
    with pytest.raises(WeightsMissing, match=r"/page: .*is a text file that begins with '<html>'"):
        locate("model.pth", pretrained_root=root)
    assert files_in(root) == []

    publish(f"{server.url}/page", f"{server.url}/right", sha256=None, size_bytes=None)
    assert locate("model.pth", pretrained_root=root).read_bytes() == CONTENT
    assert "begins with '<html>'" in capsys.readouterr().err


def test_what_was_never_published_is_not_called_right(root, server, publish, command):
    publish(f"{server.url}/right", sha256=None, size_bytes=None)
    told = f"{root / 'model.pth'}: as recorded at its first download; no published sha256 to compare it with\n"
    code, fetched = command("fetch", "model.pth")
    assert (code, told in fetched) == (0, True)
    assert command("verify") == (0, told)
    assert "as first downloaded" in command("list")[1]


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


@pytest.mark.parametrize("spec", ["rrbd.pth", "pretrained/rrbd.pth", "/elsewhere/RRDB.pth"])
def test_missing_file_is_told_with_the_nearest_known_name(spec, root):
    with pytest.raises(UserError, match=rf"no weight file {spec}.*did you mean RRDB\.pth\?"):
        locate(spec, pretrained_root=root)


@pytest.mark.parametrize(
    ("spec", "offered"), [("mine.pth", True), ("pretrained/mine.pth", True), ("../mine.pth", False)]
)
def test_downloads_are_offered_where_they_could_have_been_meant(spec, offered, root):
    with pytest.raises(UserError, match=f"no weight file {spec}: it is not at {spec} nor ") as caught:
        locate(spec, pretrained_root=root)
    assert ("can be downloaded" in str(caught.value)) == offered


def test_known_files_can_be_trusted():
    for name, file in KNOWN.items():
        assert name == file.name
        assert file.urls
        assert all(url.startswith("https://") for url in file.urls)
        assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)
        if file.hub_repository:
            assert file.hub_repository in file.urls[0]
            assert name.removesuffix(".safetensors") in timm.list_pretrained()
    # CLIP's URLs hold their sha256, torchvision's file names the first digits of theirs.
    for name in ("RN50.pt", "ViT-B-16.pt"):
        assert KNOWN[name].sha256 in KNOWN[name].urls[0]
    for name in ("vgg19-dcbb9e9d.pth", "vgg16-397923af.pth", "alexnet-owt-7be5be79.pth"):
        assert KNOWN[name].sha256.startswith(name.removesuffix(".pth").rpartition("-")[2])


def test_name_that_no_file_can_have_is_a_missing_file(tmp_path):
    with pytest.raises(WeightsMissing, match="there is no weight file"):
        locate("a" * 300, pretrained_root=tmp_path)


def test_large_file_is_read_once_in_a_process_unless_it_changes(tmp_path, publish, monkeypatch):
    publish("https://example.org/model.pth")
    path = tmp_path / "model.pth"
    path.write_bytes(CONTENT)
    digests = Mock(wraps=hashlib.sha256)
    monkeypatch.setattr(pretrained.hashlib, "sha256", digests)
    for _ in range(3):
        assert locate(path, pretrained_root=tmp_path) == path
    assert digests.call_count == 1
    path.unlink()
    path.write_bytes(CONTENT + b"more")
    with pytest.raises(UserError, match="was expected"):
        locate(path, pretrained_root=tmp_path)


def test_unreadable_weights_are_told_in_a_sentence(tmp_path, publish):
    publish("https://example.org/model.pth")
    (tmp_path / "model.pth").mkdir()
    with pytest.raises(UserError, match="could not be read"):
        locate("model.pth", pretrained_root=tmp_path)


def test_list_shows_what_is_here(root, server, publish, command, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)  # a pipe without a width shows everything
    publish(f"{server.url}/right")

    def state():
        code, table = command("list")
        assert code == 0
        assert SHA256 in table
        assert f"{server.url}/right" in table
        (line,) = (line for line in table.splitlines() if "model.pth" in line)
        return line[: line.index(SHA256)].split("test", 1)[1].strip()

    assert state() == "missing"
    root.mkdir(parents=True)
    part_of(root / "model.pth").write_bytes(bytes(1_500_000))
    assert state() == "1.5 MB so far"
    (root / "model.pth").write_bytes(CONTENT)
    assert state() == "verified"
    (root / "model.pth").write_bytes(CONTENT[:-1])
    assert state() == "another file"
    (root / "model.pth").unlink()
    (root / "model.pth").mkdir()
    assert state() == "a folder, no file"


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("columns", [80, 120])
def test_list_keeps_to_the_width_it_is_given(columns, terminal, root, command, monkeypatch):
    """Whatever is here of the files; a pipe has a width where COLUMNS gives it one."""
    monkeypatch.setenv("FORCE_COLOR" if terminal else "NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    root.mkdir(parents=True)
    (root / "RRDB.pth").touch()
    (root / "RRDB.pth.sha256").write_text(f"{sha256_of(root / 'RRDB.pth')}  RRDB.pth\n")
    (root / "SwinIR.pth").touch()
    (root / "RN50.pt").mkdir()
    part_of(root / "vgg19-dcbb9e9d.pth").touch()
    _, table = command("list")
    lines = re.sub(r"\x1b\[[\d;]*m", "", table).splitlines()
    assert max(map(len, lines)) <= columns
    here = {
        "RRDB.pth": "as first downloaded",
        "SwinIR.pth": "another file",
        "RN50.pt": "a folder, no file",
        "vgg19-dcbb9e9d.pth": "0.0 MB so far",
    }
    for name, file in KNOWN.items():
        (line,) = (line for line in lines if name in line)
        assert file.purpose in line
        assert here.get(name, "missing") in line


def test_fetch_brings_what_is_missing_and_verify_confirms_it(root, server, publish, command):
    publish(f"{server.url}/right")
    right = f"{root / 'model.pth'}: its sha256 is right\n"
    assert command("verify") == (0, f"there are no weights in {root}\n")
    assert command("fetch", "all") == (0, right)
    assert command("fetch", "model.pth") == (0, right)
    assert server.requests == ["/right"]
    (root / "mine.pth").touch()
    assert command("verify") == (0, f"{root / 'mine.pth'}: no sha256 is known to compare it with\n{right}")


def test_fetch_all_leaves_out_what_no_recipe_of_the_paper_needs(root, server, publish, command, monkeypatch):
    publish(f"{server.url}/right")
    other = WeightFile("other.pt", "test", (f"{server.url}/right",), sha256=SHA256, size_bytes=None, standard=False)
    monkeypatch.setitem(KNOWN, "other.pt", other)
    assert command("fetch", "all")[0] == 0
    assert files_in(root) == ["model.pth"]
    assert command("fetch", "all", "other.pt")[0] == 0
    assert files_in(root) == ["model.pth", "other.pt"]


def test_verify_fails_where_a_file_differs_or_is_not_there(root, publish, command):
    publish("https://example.org/model.pth")
    code, told = command("verify", "model.pth")
    assert (code, told) == (1, f"{root / 'model.pth'} is not there\n")
    root.mkdir(parents=True)
    (root / "model.pth").write_bytes(CONTENT[:-1])
    (root / "mine.pth").touch()
    for names in ((), ("mine.pth", "model.pth")):
        code, told = command("verify", *names)
        assert code == 1
        assert "no sha256 is known" in told
        assert f"{SHA256} was expected" in told


def test_fetch_goes_on_after_a_failure_and_refuses_unknown_names_before_it_begins(
    root, server, publish, command, monkeypatch
):
    publish(f"{server.url}/absent")
    second = WeightFile("second.pth", "test", (f"{server.url}/right",), sha256=SHA256, size_bytes=SIZE_BYTES)
    monkeypatch.setitem(KNOWN, "second.pth", second)
    code, told = command("fetch", "second.pth", "modle.pth")
    assert code == 2
    assert "did you mean model.pth?" in told
    assert server.requests == []
    code, told = command("fetch", "all")
    assert code == 1
    assert "404 Not Found" in told
    assert f"{root / 'second.pth'}: its sha256 is right" in told


def test_command_line_is_there_and_needs_no_network_to_list(tmp_path):
    words = [sys.executable, "-m", "utils.weights", "list", "--pretrained_root", tmp_path]
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | {"SED_OFFLINE": "1"}
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    for name, file in KNOWN.items():
        assert name in done.stdout
        assert all(url in done.stdout for url in file.urls)
