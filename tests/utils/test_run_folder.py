"""A run's folder belongs to one run at a time, and what a run has made is never written over."""

import pytest

from utils.errors import UserError
from utils.run_folder import RunFolder


def test_results_are_not_written_over_but_gone_on_with(tmp_path):
    first = RunFolder(tmp_path / "run")
    first.claim(in_place=False)
    (first.states / "state_000000001.pth").touch()
    del first  # closes its lock, as the end of its process does
    with pytest.raises(UserError, match="--resume auto"):
        RunFolder(tmp_path / "run").claim(in_place=False)
    RunFolder(tmp_path / "run").claim(in_place=True)


def test_run_that_died_before_its_first_save_can_be_started_again(tmp_path):
    RunFolder(tmp_path / "run").claim(in_place=False)
    (tmp_path / "run" / "train.log").touch()
    RunFolder(tmp_path / "run").claim(in_place=False)


@pytest.mark.parametrize("in_place", [True, False])
def test_two_processes_cannot_train_in_one_folder(tmp_path, in_place):
    first = RunFolder(tmp_path / "run")
    first.claim(in_place=False)
    with pytest.raises(UserError, match="another process"):
        RunFolder(tmp_path / "run").claim(in_place=in_place)
    assert first.states.is_dir()


def test_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    folder = RunFolder(tmp_path / "file" / "run")
    for refuse in (folder.check, folder.claim):
        with pytest.raises(UserError, match="cannot be used"):
            refuse(in_place=False)
