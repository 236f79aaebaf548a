"""How a command ends: exit code and message, for results, mistakes, interrupts and bugs."""

import errno
import os
import subprocess
import sys

import pytest

from sed_sr.options.cli import renamed_command, run
from sed_sr.options.errors import UserError


def exit_code(main):
    with pytest.raises(SystemExit) as ending:
        run(main)
    return ending.value.code


def raises(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize("code", [0, 1])
def test_return_value_of_main_is_the_exit_code(code, capsys):
    assert exit_code(lambda: code) == code
    assert capsys.readouterr().err == ""


def test_user_error_is_one_sentence_after_the_name_of_the_script(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/train.py"])
    assert exit_code(raises(UserError("no such option"))) == 2
    assert capsys.readouterr().err == "train.py: error: no such option\n"


def test_package_run_as_a_module_is_called_by_its_name(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/degradation/__main__.py"])
    exit_code(raises(UserError("no such photograph")))
    assert capsys.readouterr().err == "degradation: error: no such photograph\n"


def test_interrupt_is_one_line(capsys):
    assert exit_code(raises(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")


@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.ENOSPC, "free some space"), (errno.EIO, "file system failed; start again")]
)
def test_full_or_failing_disk_is_one_sentence_that_names_the_file(capsys, number, remedy):
    assert exit_code(raises(OSError(number, os.strerror(number), "a.png"))) == 2
    message = capsys.readouterr().err
    assert f"{os.strerror(number)} (a.png)" in message
    assert remedy in message
    assert message.count("\n") == 1


@pytest.mark.parametrize("bug", [ValueError("a bug"), OSError(errno.EINVAL, "invalid argument")])
def test_bug_shows_its_traceback(bug, capsys):
    assert exit_code(raises(bug)) == 1
    message = capsys.readouterr().err
    assert "Traceback" in message
    assert str(bug) in message


def test_closed_pipe_is_no_error():
    script = "from sed_sr.options.cli import run\nrun(lambda: [print('line' * 1000) for _ in range(1000)] and 0)"
    command = f"'{sys.executable}' -c \"{script}\" | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "line" * 1000 + "\n"
    assert done.stderr == ""


def test_old_name_of_a_command_gives_the_new_one(capsys):
    with pytest.raises(SystemExit) as ending:
        renamed_command("data.old", "data.prepare.new")
    assert ending.value.code == 2
    assert capsys.readouterr().err == "python -m data.old is now python -m data.prepare.new\n"
