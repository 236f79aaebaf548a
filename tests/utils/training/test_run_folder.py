"""A run folder is locked by one process, and the results of a run are never overwritten."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sed_sr.options.errors import UserError
from sed_sr.utils.training.run_folder import RunFolder

ROOT = Path(__file__).parents[3]


def test_existing_run_is_resumed_but_not_overwritten(tmp_path):
    first = RunFolder(tmp_path / "run")
    first.lock(in_place=False)
    (first.states / "state_000000001.pth").touch()
    with pytest.raises(UserError, match="--resume auto"):
        RunFolder(tmp_path / "run").lock(in_place=False)
    RunFolder(tmp_path / "run").lock(in_place=True)


def test_run_that_was_killed_before_its_first_save_can_be_started_again(tmp_path):
    RunFolder(tmp_path / "run").lock(in_place=False)
    (tmp_path / "run" / "train.log").touch()
    RunFolder(tmp_path / "run").lock(in_place=False)


LOCK = """
import os, sys, time
from pathlib import Path
from sed_sr.utils.training.run_folder import RunFolder

folder = RunFolder(Path(sys.argv[1]))
folder.lock(in_place=False)
worker = os.fork()
if worker:
    print(worker, flush=True)
time.sleep(60)
"""


def test_two_processes_cannot_train_in_one_folder_and_workers_of_a_killed_one_do_not_keep_the_lock(tmp_path):
    """The first process has forked a worker, as a data loader does, which outlives it for a while."""
    command = [sys.executable, "-c", LOCK, str(tmp_path / "run")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    worker = int(process.stdout.readline())
    try:
        for in_place in (True, False):
            with pytest.raises(UserError, match="another process"):
                RunFolder(tmp_path / "run").lock(in_place=in_place)
        process.kill()
        process.wait()
        os.kill(worker, 0)  # it is alive
        RunFolder(tmp_path / "run").lock(in_place=False)
    finally:
        process.kill()
        os.kill(worker, signal.SIGKILL)


def test_weights_without_a_state_are_not_overwritten(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.root.mkdir()
    folder.latest_weights.touch()
    with pytest.raises(UserError, match="no training state to resume from"):
        folder.check(in_place=False)


def test_folder_that_cannot_be_created_is_reported(tmp_path):
    (tmp_path / "file").touch()
    folder = RunFolder(tmp_path / "file" / "run")
    for method in (folder.check, folder.lock):
        with pytest.raises(UserError, match="cannot be used"):
            method(in_place=False)


def test_oldest_states_are_deleted_and_other_files_are_kept(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.saved_states() == []
    folder.states.mkdir()
    assert folder.saved_states() == []
    for step in (5, 300_000_000, 90_000, 100_000):
        folder.state(step).touch()
    others = ["state_000000001.pth.tmp", ".state_999999999.pth.1a2b.tmp", "state_9.pth", "generator_000000001.pth"]
    for name in others:
        (folder.states / name).touch()

    newest, second, third, _ = [folder.state(step) for step in (300_000_000, 100_000, 90_000, 5)]
    assert folder.saved_states()[:3] == [newest, second, third]
    folder.delete_states(keep=1, best=third)
    assert folder.saved_states() == [newest, third]
    folder.delete_states(keep=5)
    assert folder.saved_states() == [newest, third]
    folder.delete_states(keep=1)
    assert {path.name for path in folder.states.iterdir()} == {newest.name, *others}
