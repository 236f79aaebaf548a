"""Values reach metrics.jsonl and the experiment loggers, which work on other threads."""

import json
from contextlib import closing
from threading import Event

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sed_sr.utils.training.loggers import TensorBoard
from sed_sr.utils.training.run_folder import RunFolder
from sed_sr.utils.training.run_log import RunLog


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path)
    folder.lock(in_place=False)
    return folder


def test_curves_and_pictures_are_in_the_event_file_and_logging_does_not_wait_for_it(folder, monkeypatch):
    log, tensorboard, release = RunLog(folder), TensorBoard(folder.tensorboard), Event()
    add_image = tensorboard.image
    monkeypatch.setattr(tensorboard, "image", lambda *what: release.wait(10) and add_image(*what))
    log.add(tensorboard)
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    log.image("Set5/baby", 1, picture)
    for step in range(1, 41):  # more than TensorBoard's queue holds
        log.scalars("train", step, {"pixel": step / 8})
    release.set()
    log.close()
    events = EventAccumulator(str(folder.tensorboard))
    events.Reload()
    assert [event.value for event in events.Scalars("train/pixel")] == [step / 8 for step in range(1, 41)]
    (shown,) = events.Images("Set5/baby")
    assert (shown.step, shown.width, shown.height) == (1, 30, 20)


def test_failure_of_tensorboard_is_raised(folder, monkeypatch):
    def fail(*what):
        raise OSError("no space left")

    log, tensorboard = RunLog(folder), TensorBoard(folder.tensorboard)
    monkeypatch.setattr(tensorboard, "scalars", fail)
    log.add(tensorboard)
    with pytest.raises(OSError, match="no space left"), closing(log):
        log.scalars("train", 1, {"pixel": 1.0})


def test_values_after_the_step_from_which_a_run_resumes_are_dropped(folder):
    kinds = ("train", "time", "spectral_norm", "validation/Set5")
    log = RunLog(folder)
    for step in (1, 2, 3):
        for kind in kinds:
            log.scalars(kind, step, {"value": 1.0})
    log.close()
    RunLog(folder, step=2, validated=1).close()
    kept = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [(line["step"], line["kind"]) for line in kept] == [(1, kind) for kind in kinds] + [
        (2, kind) for kind in kinds[:-1]
    ]
