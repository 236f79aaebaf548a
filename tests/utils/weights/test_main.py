"""The command `python -m utils.weights`."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from huggingface_hub import utils

from sed_sr.models.rrdb import RRDBNet
from sed_sr.options.cli import run
from sed_sr.utils.weights import checkpoint
from sed_sr.utils.weights.__main__ import main
from sed_sr.utils.weights.catalogue import PUBLISHED, WeightFile
from sed_sr.utils.weights.pretrained import sha256_of
from tests.hub_server import READ

pytestmark = pytest.mark.usefixtures("isolated")

ROOT = Path(__file__).parents[3]
CONTENT = safetensors.torch.save({"weight": torch.arange(9)})  # what the server sends
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def command(root, monkeypatch, capsys):
    """Runs the command in this process; returns its exit code and what it printed."""

    def run_it(*words):
        monkeypatch.setattr(sys, "argv", ["weights", *words, "--pretrained_root", str(root)])
        with pytest.raises(SystemExit) as ended:
            run(main)
        printed = capsys.readouterr()
        return ended.value.code, printed.out + printed.err

    return run_it


def test_list_shows_which_files_exist(root, server, publish, command):
    publish(f"{server.url}/right", sha256=SHA256)

    def state():
        code, table = command("list")
        assert code == 0
        assert SHA256 in table
        assert f"{server.url}/right" in table
        (line,) = (line for line in table.splitlines() if "model.pth" in line)
        return line[: line.index(SHA256)].split("test", 1)[1].strip()

    assert state() == "missing"
    root.mkdir(parents=True)
    (root / "model.pth").write_bytes(CONTENT)
    assert state() == "verified"
    (root / "model.pth").write_bytes(CONTENT[:-1])
    assert state() == "wrong file"
    (root / "model.pth").unlink()
    (root / "model.pth").mkdir()
    assert state() == "a folder, not a file"


@pytest.mark.parametrize("columns", [80, 120])
def test_list_fits_the_width_of_the_terminal(columns, root, command, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    root.mkdir(parents=True)
    (root / "RRDB.pth").touch()
    (root / "RRDB.pth.sha256").write_text(f"{sha256_of(root / 'RRDB.pth')}  RRDB.pth\n")
    (root / "SwinIR.pth").touch()
    (root / "RN50.pt").mkdir()
    _, table = command("list")
    lines = re.sub(r"\x1b\[[\d;]*m", "", table).splitlines()
    assert max(map(len, lines)) <= columns
    states = {"RRDB.pth": "as first downloaded", "SwinIR.pth": "wrong file", "RN50.pt": "a folder, not a file"}
    for name, file in PUBLISHED.items():
        (line,) = (line for line in lines if name in line)
        assert file.purpose in line
        assert states.get(name, "missing") in line


def test_list_and_verify_show_copies_of_other_tools(root, publish, command):
    publish("https://example.org/model.pth", sha256=SHA256)
    copy = Path(torch.hub.get_dir(), "checkpoints", "model.pth")
    copy.parent.mkdir(parents=True)
    copy.write_bytes(CONTENT)
    assert str(copy.parent) in "".join(command("list")[1].split())  # long paths are folded
    assert command("verify") == (0, f"{copy}: its sha256 is right\n")


def test_fetch_downloads_what_is_missing_and_verify_confirms_it(root, server, publish, command):
    publish(f"{server.url}/right", sha256=SHA256)
    right = f"{root / 'model.pth'}: its sha256 is right\n"
    assert command("verify") == (0, f"there are no weights in {root}\n")
    code, printed = command("fetch", "all")
    assert (code, right in printed) == (0, True)
    assert command("fetch", "model.pth") == (0, right)
    assert server.requests == ["/right"]
    (root / "mine.pth").touch()
    assert command("verify") == (0, f"{root / 'mine.pth'}: no sha256 is known to compare it with\n{right}")


def test_file_without_a_published_sha256_is_not_called_right(root, server, publish, command):
    publish(f"{server.url}/right", sha256=None)
    verdict = f"{root / 'model.pth'}: as recorded at its first download; no published sha256 to compare it with\n"
    code, printed = command("fetch", "model.pth")
    assert (code, verdict in printed) == (0, True)
    assert command("verify") == (0, verdict)
    assert "as first downloaded" in command("list")[1]


def test_fetch_all_leaves_out_files_that_are_not_standard(root, server, publish, command, monkeypatch):
    publish(f"{server.url}/right", sha256=SHA256)
    monkeypatch.setitem(PUBLISHED, "other.pt", WeightFile("other.pt", "test", f"{server.url}/right", sha256=SHA256))
    assert command("fetch", "all")[0] == 0
    assert [path.name for path in root.iterdir()] == ["model.pth"]
    assert command("fetch", "all", "other.pt")[0] == 0
    assert sorted(path.name for path in root.iterdir()) == ["model.pth", "other.pt"]


def test_verify_fails_if_a_file_differs_or_does_not_exist(root, publish, command):
    publish("https://example.org/model.pth", sha256=SHA256)
    assert command("verify", "model.pth") == (1, f"{root / 'model.pth'} does not exist\n")
    root.mkdir(parents=True)
    (root / "model.pth").write_bytes(CONTENT[:-1])
    (root / "mine.pth").touch()
    for names in ((), ("mine.pth", "model.pth")):
        code, printed = command("verify", *names)
        assert code == 1
        assert "no sha256 is known" in printed
        assert f"{SHA256} was expected" in printed


def test_fetch_goes_on_after_a_failure_and_rejects_unknown_names_first(root, server, publish, command, monkeypatch):
    publish(f"{server.url}/absent", sha256=SHA256)
    second = WeightFile("second.pth", "test", f"{server.url}/right", sha256=SHA256, standard=True)
    monkeypatch.setitem(PUBLISHED, "second.pth", second)
    for unknown, expected in (
        ("modle.pth", "did you mean model.pth?"),
        ("resnet18.a1_in1.safetensors", "not a published file"),
    ):
        code, printed = command("fetch", "second.pth", unknown)
        assert (code, expected in printed) == (2, True)
    assert server.requests == []
    code, printed = command("fetch", "all")
    assert code == 1
    assert "404 Not Found" in printed
    assert f"{root / 'second.pth'}: its sha256 is right" in printed


def test_list_needs_neither_a_network_nor_pytorch(tmp_path):
    """PyTorch takes seconds to import."""
    program = "import runpy, sys; sys.modules['torch'] = None; runpy.run_module('utils.weights', run_name='__main__')"
    words = [sys.executable, "-c", program, "list", "--pretrained_root", tmp_path]
    environment = {**os.environ, "SED_OFFLINE": "1"}
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    for name, file in PUBLISHED.items():
        assert name in done.stdout
        assert file.url in done.stdout


@pytest.fixture
def net(tmp_path):
    """A file of generator weights."""
    options = {"name": "run", "generator": {"type": "rrdb", "features": 8, "blocks": 1, "growth": 4}}
    state = RRDBNet(features=8, blocks=1, growth=4).state_dict()
    path = tmp_path / "net.pth"
    about = {"options": options, "step": 3, "scale": 4, "scores": {}, "scored_step": 0}
    checkpoint.save_generator(path, params=state, params_ema=None, **about)
    return path


@pytest.fixture
def push(hub, net, monkeypatch, capsys):
    """Runs `push`; returns its exit code and what it printed."""

    def run_it(*words):
        monkeypatch.setattr(sys, "argv", ["weights", "push", *map(str, words), "--weights", str(net)])
        with pytest.raises(SystemExit) as ended:
            run(main)
        printed = capsys.readouterr()
        return ended.value.code, printed.out + printed.err

    return run_it


def test_push_uploads_weights_and_card_in_one_commit(push, hub, net):
    before = net.read_bytes()
    for license_id in ("mit", "apache-2.0"):
        code, printed = push("user/net", "--license", license_id)
        assert code == 0, printed
        repository = hub.repositories["user/net"]
        commit, files = list(repository.commits.items())[-1]
        assert f"{hub.url}/user/net/commit/{commit}" in printed
        assert files.keys() == {"README.md", "model.safetensors"}
        assert f"license: {license_id}" in files["README.md"].decode()
        weights = safetensors.torch.load(files["model.safetensors"])
        assert all(torch.equal(weights[name], value) for name, value in torch.load(net)["params"].items())
    assert len(repository.commits) == 2
    assert not repository.private
    assert net.read_bytes() == before


def test_push_keeps_private_weights_private(push, hub):
    assert push("user/new", "--private")[0] == 0
    assert hub.repositories["user/new"].private
    hub.publish("user/public")
    code, printed = push("user/public", "--private")
    assert (code, "nothing was uploaded" in printed) == (2, True)
    assert "user/public exists and is public" in printed
    assert hub.repositories["user/public"].commits == {}


def test_dry_run_writes_the_files_and_connects_to_nothing(push, hub, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    code, printed = push("user/net", "--dry_run", tmp_path / "look")
    assert code == 0
    assert "the model card states no licence" in printed
    assert sorted(path.name for path in (tmp_path / "look").iterdir()) == ["README.md", "model.safetensors"]
    assert hub.requests == []
    (tmp_path / "look/README.md").write_text("mine")
    code, printed = push("user/net", "--dry_run", tmp_path / "look")
    assert (code, "exists already" in printed) == (2, True)
    assert (tmp_path / "look/README.md").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "variables", "expected"),
    [
        ("user/net", {"HF_TOKEN": None}, "needs a token with the permission to write"),
        ("user/net", {"HF_TOKEN": "hf_expired"}, "401 Invalid username or password."),
        ("user/net", {"HF_TOKEN": READ}, "403 You don't have the rights to create a model under user"),
        ("user/public", {"HF_TOKEN": READ}, "403 You don't have the rights to write to user/public"),
        ("other/net", {}, "403 You don't have the rights to create a model under other"),
        ("user/net", {"SED_OFFLINE": "1"}, "SED_OFFLINE forbids connections"),
        ("user/net", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE forbids connections"),
        ("user/net --license MIT", {}, "--license MIT is not the identifier of a licence"),
        ("user/net --license unknown", {}, '"license" must be one of [mit, apache-2.0]'),
        ("net", {}, "expected was user/name"),
        ("user/net/more", {}, "expected was user/name"),
        ("user/a--b", {}, "Cannot have -- or .. in repo_id"),
        ("user/net --scores nowhere", {}, "nowhere/results.json could not be read: No such file or directory"),
    ],
)
def test_push_that_fails_is_one_sentence(words, variables, expected, push, hub, monkeypatch):
    hub.publish("user/public")
    for name, value in variables.items():
        monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name)
    code, printed = push(*words.split())
    assert code == 2
    assert expected in printed
    (sentence,) = (line for line in printed.splitlines() if "error: " in line)
    assert expected in sentence
    assert "Traceback" not in printed
    assert not any(repository.commits for repository in hub.repositories.values())


def test_push_without_a_connection_is_one_sentence(push, hub, monkeypatch):
    monkeypatch.setattr(utils._http.time, "sleep", lambda _: None)
    hub.shutdown()
    hub.server_close()
    code, printed = push("user/net")
    assert code == 2
    assert f"nothing was uploaded to {hub.url}/user/net: Connection refused\n" in printed


def test_fetch_downloads_from_the_hub(hub, command, root):
    hub.publish("user/net").commit({"a/model.safetensors": CONTENT})
    address = "hf://user/net/a/model.safetensors"
    code, printed = command("fetch", address, "hf://user/net/b.pth")
    assert code == 1
    (line,) = (line for line in printed.splitlines() if line.startswith(f"{address} is "))
    assert Path(line.removeprefix(f"{address} is ")).read_bytes() == CONTENT
    assert "has no file b.pth; it has a/model.safetensors" in printed
    assert not root.exists()
