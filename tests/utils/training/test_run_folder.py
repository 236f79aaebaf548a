"""A run's folder belongs to one run at a time, and what a run has made is never written over."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sed_sr.options.errors import UserError
from sed_sr.utils.training.run_folder import RunFolder

ROOT = Path(__file__).parents[3]


def test_results_are_not_written_over_but_gone_on_with(tmp_path):
    first = RunFolder(tmp_path / "run")
    first.claim(in_place=False)
    (first.states / "state_000000001.pth").touch()
    with pytest.raises(UserError, match="--resume auto"):
        RunFolder(tmp_path / "run").claim(in_place=False)
    RunFolder(tmp_path / "run").claim(in_place=True)


def test_run_that_died_before_its_first_save_can_be_started_again(tmp_path):
    RunFolder(tmp_path / "run").claim(in_place=False)
    (tmp_path / "run" / "train.log").touch()
    RunFolder(tmp_path / "run").claim(in_place=False)


CLAIM = """
import os, sys, time
from pathlib import Path
from sed_sr.utils.training.run_folder import RunFolder

folder = RunFolder(Path(sys.argv[1]))
folder.claim(in_place=False)
worker = os.fork()
if worker:
    print(worker, flush=True)
time.sleep(60)
"""


def test_two_processes_cannot_train_in_one_folder_and_a_killed_ones_workers_do_not_keep_it(tmp_path):
    """The first one has forked a worker, as a data loader does; being killed, it leaves it behind for a while."""
    words = [sys.executable, "-c", CLAIM, str(tmp_path / "run")]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    worker = int(process.stdout.readline())
    try:
        for in_place in (True, False):
            with pytest.raises(UserError, match="another process"):
                RunFolder(tmp_path / "run").claim(in_place=in_place)
        process.kill()
        process.wait()
        os.kill(worker, 0)  # it is there
        RunFolder(tmp_path / "run").claim(in_place=False)
    finally:
        process.kill()
        os.kill(worker, signal.SIGKILL)


def test_weights_without_a_state_are_not_written_over(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.root.mkdir()
    folder.latest_weights.touch()
    with pytest.raises(UserError, match="no training state to go on from"):
        folder.check(in_place=False)


def test_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    folder = RunFolder(tmp_path / "file" / "run")
    for refuse in (folder.check, folder.claim):
        with pytest.raises(UserError, match="cannot be used"):
            refuse(in_place=False)
