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

from sed_sr.options.cli import run
from sed_sr.utils.weights.__main__ import main
from sed_sr.utils.weights.catalogue import PUBLISHED, WeightFile
from sed_sr.utils.weights.pretrained import sha256_of

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
