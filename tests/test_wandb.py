"""Runs that log to wandb, offline: wandb's own files hold what metrics.jsonl holds, also after a resume."""

import json
import os
from collections import Counter
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.conftest import ROOT, finished, not_outlived
from tests.wandb_files import contents, logged, run_of

MEASURED = ("time/", "train/images_per_s")  # differ when a step is repeated


def values_of(metrics: Path) -> Counter:
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    return Counter((f"{line['kind']}/{name}", line["step"], line[name]) for line in lines for name in list(line)[2:])


def train(launch, *settings, cwd, opt="rrdb_P+SeD.yml", new=False, **variables):
    words = [word for setting in settings for word in ("--set", setting)]
    process = launch("train.py", "--opt", opt, "--resume", "auto", *words, cwd=cwd, new=new, **variables)
    with not_outlived(process):
        stdout, stderr = process.communicate(timeout=240)
    return CompletedProcess(process.args, process.returncode, stdout, stderr)


@pytest.fixture
def segments(workshop, launch):
    """A run to step 2 without loggers, from there to step 4 with wandb, and again from step 2, as after a crash."""
    run = workshop / "checkpoint/rrdb_P+SeD"
    finished(train(launch, "logging=[]", "train.total_steps=2", cwd=workshop))
    for _ in range(2):
        finished(train(launch, "logging=[wandb]", cwd=workshop, WANDB_MODE="offline", WANDB_PROJECT="mine"))
        (run / "states/state_000000004.pth").unlink()
    return sorted((run / "wandb").glob("offline-run-*"), key=lambda segment: segment.stat().st_ctime)


def test_wandb_has_what_metrics_jsonl_has_once_and_a_resumed_run_continues_its_wandb_run(segments, workshop):
    run = workshop / "checkpoint/rrdb_P+SeD"
    first, second = segments
    assert run_of(first).run_id == run_of(second).run_id
    assert run_of(second).resume  # `wandb sync` appends it to the first
    assert (run_of(first).project, run_of(first).display_name) == ("mine", "rrdb_P+SeD")
    options = yaml.safe_load((run / "options.yml").read_text())
    config = {update.key: json.loads(update.value_json) for update in run_of(first).config.update}
    assert {key: config[key] for key in options} == options
    (axis,) = [record.metric for record in contents(first) if record.HasField("metric")]
    assert (axis.glob_name, axis.step_metric) == ("*", "step")

    in_wandb = Counter([*logged(first), *logged(second)])
    pictures = Counter({key: count for key, count in in_wandb.items() if isinstance(key[2], str)})
    values = values_of(run / "metrics.jsonl")
    assert {step for _, step, _ in values} == {1, 2, 3, 4}
    assert values <= in_wandb
    more = in_wandb - values - pictures
    assert all(name.startswith(MEASURED) for name, _, _ in more), more
    assert {step for _, step, _ in more} == {3, 4}

    names = {f"Photos/{name}" for name in ("cat", "cup", "spoon")}
    names |= {f"discriminator/{name}" for name in ("semantics", "attention", "real_or_fake_HR", "real_or_fake_SR")}
    assert Counter((name, step) for name, step, _ in pictures) == Counter((name, 4) for name in names)
    (cat,) = [file for name, _, file in pictures if name == "Photos/cat"]
    validated = Image.open(run / "images/step_000000004/Photos/cat.png")
    assert np.array_equal(Image.open(first / "files" / cat), validated)
    assert not (run / "tensorboard").exists()


def test_wandb_is_needed_only_if_it_is_listed_and_its_absence_is_one_sentence(workshop, launch):
    (workshop / "wandb.py").write_text("raise ImportError('not here')")
    path = f"{workshop}{os.pathsep}{ROOT}"
    short = partial(train, launch, "train.total_steps=1", "validation.benchmarks=[]", cwd=workshop, opt="rrdb_psnr.yml")
    finished(short(new=True, PYTHONPATH=path), "TensorBoard: ")
    done = short("logging=[wandb]", "name=other", new=True, PYTHONPATH=path)
    assert done.returncode == 2
    assert done.stderr == (
        "train.py: error: logging lists wandb, which cannot be imported (ImportError: not here): pip install wandb\n"
    )
    assert not (workshop / "checkpoint/other").exists()


def test_missing_login_is_reported_before_the_run_starts(workshop, launch, tmp_path):
    home = {"HOME": tmp_path / "home", "WANDB_MODE": "online", "WANDB_API_KEY": ""}
    done = train(launch, "logging=[wandb]", cwd=workshop, opt="rrdb_psnr.yml", **home)
    assert done.returncode == 2
    assert "wandb has no login: run `wandb login`, or set WANDB_MODE=offline" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (workshop / "checkpoint/rrdb_psnr").exists()
