"""A file is whole under its final name, whatever happens while it is written."""

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from utils import files
from utils.checkpoint import load, save
from utils.errors import UserError
from utils.files import write_text


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


def test_file_size_limit_of_the_system_is_told_in_a_sentence(tmp_path):
    path = tmp_path / "net.pth"
    save({"old": torch.ones(3)}, path)
    program = (
        "import resource, sys, torch; from utils.checkpoint import save; from utils.errors import UserError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: save({'new': torch.ones(10000)}, sys.argv[1])\n"
        "except UserError as error: print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, path],
        cwd=Path(files.__file__).parents[1],
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
        "import os, signal, sys; from pathlib import Path; from utils.files import atomic_writer\n"
        "with atomic_writer(Path(sys.argv[1])) as file:\n"
        "    file.write(b'new'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, path], cwd=Path(files.__file__).parents[1], check=False)
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
