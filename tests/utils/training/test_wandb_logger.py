"""A wandb that fails does not end the run, and what it lost is sent when the run resumes."""

import subprocess
import sys

import pytest

from sed_sr.options.errors import UserError
from sed_sr.utils.training.wandb_logger import check_wandb
from tests.conftest import ROOT
from tests.wandb_files import logged

RUN = """
import os, signal, sys
from pathlib import Path
from sed_sr.utils.training.run_folder import RunFolder
from sed_sr.utils.training.run_log import RunLog
from sed_sr.utils.training.wandb_logger import Wandb
from tests.conftest import children_of

folder, first = RunFolder(Path(sys.argv[1])), int(sys.argv[2])
folder.lock(in_place=first > 1)
log = RunLog(folder, step=first)
logger = Wandb(folder, name="run", config={}, in_place=first > 1, warn=log.warning)
log.add(logger)
log.scalars("train", first, {"pixel": first / 8, "gan": float("inf")})
if first == 1:
    log._loggers[0]._thread.submit(int).result()  # wandb's process has the values, but did not write them yet
    (service,) = children_of(os.getpid())
    os.kill(service, signal.SIGKILL)
    os.waitpid(service, 0)
for step in range(first + 1, first + 4):
    log.scalars("train", step, {"pixel": step / 8})
log.close()
"""


def test_killed_wandb_is_a_warning_and_the_resumed_run_sends_what_was_lost(tmp_path):
    run = tmp_path / "run"
    environment = {"PYTHONPATH": str(ROOT), "WANDB_MODE": "offline", "HOME": str(tmp_path)}
    for first in (1, 5):
        subprocess.run([sys.executable, "-c", RUN, run, str(first)], check=True, env=environment)
    assert (run / "train.log").read_text().count("WARNING wandb has failed") == 1
    found = [found for segment in (run / "wandb").glob("offline-run-*") for found in logged(segment)]
    steps = [step for name, step, _ in found if name == "train/pixel"]
    assert sorted(steps) == list(range(1, 9))


def test_old_wandb_is_refused(monkeypatch):
    monkeypatch.setattr("wandb.__version__", "0.29.0")
    with pytest.raises(UserError, match=r"0\.29\.0 is too old: pip install --upgrade wandb"):
        check_wandb()
