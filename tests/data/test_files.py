"""A file is whole under its final name, whatever happens while it is written."""

import ctypes
import errno
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sed_sr.data import files
from sed_sr.data.files import WriteError, atomic_writer, flush_file_systems, write_text
from sed_sr.options.errors import UserError
from sed_sr.utils.weights.checkpoint import load, save

ROOT = Path(__file__).parents[2]


def test_full_disk_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    path = tmp_path / "net.pth"
    save({"old": torch.ones(3)}, path)

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    for write in (lambda: save({"new": 1}, path), lambda: write_text(path, "new")):
        with pytest.raises(UserError, match=re.escape(f"cannot write {path}: No space left on device")):
            write()
    assert list(tmp_path.iterdir()) == [path]
    assert torch.equal(load(path)["old"], torch.ones(3))


def test_file_size_limit_of_the_system_is_a_user_error(tmp_path):
    path = tmp_path / "net.pth"
    save({"old": torch.ones(3)}, path)
    program = (
        "import resource, sys, torch; from sed_sr.utils.weights.checkpoint import save\n"
        "from sed_sr.options.errors import UserError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: save({'new': torch.ones(10000)}, sys.argv[1])\n"
        "except UserError as error: print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == f"cannot write {path}: {os.strerror(errno.EFBIG)}\n"
    assert list(tmp_path.iterdir()) == [path]
    assert list(load(path)) == ["old"]


def test_killed_while_writing_keeps_the_old_file(tmp_path):
    path = tmp_path / "net.pth"
    write_text(path, "old")
    program = (
        "import os, signal, sys; from pathlib import Path; from sed_sr.data.files import atomic_writer\n"
        "with atomic_writer(Path(sys.argv[1])) as file:\n"
        "    file.write(b'new'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, path], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_a_file_is_replaced_at_once_and_readers_of_the_old_one_finish_it(tmp_path):
    path = tmp_path / "net.txt"
    write_text(path, "old")
    with open(path) as reader:
        write_text(path, "new")
        assert reader.read() == "old"
    assert path.read_text() == "new"


def test_written_files_are_the_whole_text_in_new_folders_with_usual_permissions(tmp_path):
    path = tmp_path / "a" / "b" / "log.txt"
    write_text(path, "Größe: 4×\n")
    assert path.read_text(encoding="utf-8") == "Größe: 4×\n"
    assert [item.name for item in path.parent.iterdir()] == ["log.txt"]
    (tmp_path / "usual").touch()
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.fixture
def fsyncs(monkeypatch):
    """What is flushed, in this order: "file" or "folder"."""
    calls, fsync = [], os.fsync

    def noted(descriptor):
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", noted)
    return calls


def test_a_state_is_flushed_before_it_gets_its_name_and_its_folder_afterwards(tmp_path, fsyncs, monkeypatch):
    replace = os.replace
    monkeypatch.setattr(files.os, "replace", lambda *paths: (fsyncs.append("rename"), replace(*paths)))
    save({"step": 1}, tmp_path / "state.pth")
    assert fsyncs == ["file", "rename", "folder"]


def test_a_file_that_can_be_made_again_is_replaced_at_once_without_a_flush(tmp_path, fsyncs):
    path = tmp_path / "a.png"
    path.write_text("old")
    with atomic_writer(path, durable=False) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [item.name for item in tmp_path.iterdir()] == ["a.png"]
    assert fsyncs == []


def test_each_file_system_is_flushed_once_and_a_failure_is_an_error(tmp_path, monkeypatch):
    flushed = []

    def syncfs(descriptor):
        flushed.append(os.fstat(descriptor).st_ino)
        ctypes.set_errno(errno.EIO)
        return result

    monkeypatch.setattr(files.ctypes, "CDLL", lambda *_, **__: SimpleNamespace(syncfs=syncfs))
    (tmp_path / "a").mkdir()
    result = 0
    flush_file_systems([tmp_path, tmp_path / "a"])
    assert len(flushed) == 1
    result = -1
    with pytest.raises(WriteError, match=re.escape(f"cannot flush {tmp_path} to the disk: {os.strerror(errno.EIO)}")):
        flush_file_systems([tmp_path])


def test_the_system_flushes_the_file_system_of_a_folder(tmp_path):
    flush_file_systems([tmp_path])
    with pytest.raises(FileNotFoundError):
        flush_file_systems([tmp_path / "missing"])


def test_without_syncfs_all_file_systems_are_flushed(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(files.ctypes, "CDLL", lambda *_, **__: SimpleNamespace())
    monkeypatch.setattr(files.os, "sync", lambda: calls.append("sync"))
    flush_file_systems([tmp_path])
    assert calls == ["sync"]


@pytest.mark.parametrize("hard_links", [True, False])
def test_a_link_has_the_content_and_takes_the_place_of_what_was_there(tmp_path, monkeypatch, hard_links):
    if not hard_links:

        def refuse(*_):
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(files.os, "link", refuse)
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(b"new")
    target.write_bytes(b"old")
    files.link_file(source, target)
    assert target.read_bytes() == b"new"
    assert (source.stat().st_ino == target.stat().st_ino) == hard_links
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    with pytest.raises(UserError, match="cannot write"):
        files.link_file(tmp_path / "missing", target)
    assert target.read_bytes() == b"new"
