"""A run that is stopped, killed, moved or starved of disk goes on as if nothing had been, or says what is wrong.

`make test-long` kills twenty times; the other tests here run in `make test`.
"""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import (
    STEPS,
    TORCHRUN,
    TRAIN,
    assert_equal_runs,
    figures,
    finished,
    last_state,
    newest_step,
    not_outlived,
    ranks_of,
    same,
    wait_until,
)


def test_two_processes_go_on_exactly_where_they_stopped(workshop, command, undisturbed):
    parts = (*TRAIN, "--set", "name=two")
    stopped = command(*parts, "--set", "train.total_steps=2", cwd=workshop, processes=2)
    finished(stopped, "no training state yet")
    told = finished(command(*parts, cwd=workshop, processes=2), "a training state at step 2")
    assert "train.total_steps was 2, is 6" in told
    # Shortened, the first part validated after its last step, which the undisturbed run did not.
    ours, theirs = last_state(workshop / "checkpoint/two"), last_state(undisturbed / "two")
    assert same(ours["train_step"], theirs["train_step"])
    trained = [[line for line in figures(run / "two") if line["kind"] == "train"]
               for run in (workshop / "checkpoint", undisturbed)]  # fmt: skip
    assert trained[0] == trained[1]


def test_another_number_of_processes_goes_on_and_says_that_it_is_not_exact(workshop, command, undisturbed):
    shutil.copytree(undisturbed / "two", workshop / "checkpoint/two")
    done = command(*TRAIN, "--set", "name=two", "--set", "train.total_steps=7", cwd=workshop)
    told = finished(done, "a training state at step 6")
    assert "there were 2 processes, now 1" in told
    assert "will not be bit-exact" in told
    assert last_state(workshop / "checkpoint/two")["loop"]["samples"] == STEPS * 4 + 2


@pytest.mark.parametrize(("kills", "steps"), [(2, STEPS), pytest.param(20, 150, marks=pytest.mark.long)])
def test_killed_run_ends_as_the_undisturbed_one(workshop, launch, command, undisturbed, kills, steps):
    """SIGKILL at random moments, in the start of the process as well as in steps and saves; a save at every step."""
    if steps != STEPS:
        undisturbed = workshop / "checkpoint"
        finished(command(*TRAIN, "--set", "name=undisturbed", "--set", f"train.total_steps={steps}", cwd=workshop))
        (undisturbed / "undisturbed").rename(undisturbed / "one")
    moments = random.Random(kills)
    run = workshop / "checkpoint/killed"
    words = (*TRAIN, "--set", "name=killed", "--set", f"train.total_steps={steps}")
    in_training = 0
    for _ in range(kills):
        before = newest_step(run)
        process = launch(*words, cwd=workshop)
        with not_outlived(process):
            if moments.random() < 0.8 or kills <= 2:
                wait_until(lambda before=before: newest_step(run) > before, process)
            time.sleep(moments.uniform(0, 2 if kills > 2 else 0.3))
            assert process.poll() is None, process.communicate()
            process.kill()
        in_training += newest_step(run) > before
        print(f"killed at step {newest_step(run)}")
    assert in_training >= kills * 0.7
    finished(command(*words, cwd=workshop), "a training state at step")
    assert_equal_runs(run, undisturbed / "one")
    assert not [path for path in run.rglob(".*") if path.name.endswith(".tmp")]


def test_signals_end_a_run_after_a_step_and_a_save(workshop, launch):
    """SIGTERM, SIGUSR1 and Ctrl-C to the whole group, a loader's workers too: exit 0 with a state of the last step."""
    run = workshop / "checkpoint/rrdb_psnr"
    words = ("train.py", "--opt", "rrdb_psnr.yml", "--set", "train.total_steps=100000", "--resume", "auto", "--set",
             "train.save_every_steps=100000", "--set", "validation.every_steps=100000")  # fmt: skip
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        before = newest_step(run)
        # Ctrl-C is given to a new interpreter; a forked process has a group of its own anyway
        process = launch(*words, cwd=workshop, through=("setsid",) if number == signal.SIGINT else ())
        with not_outlived(process):
            wait_until(lambda before=before: last_logged(run) > before + 2, process)
            os.killpg(process.pid, number)
            stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr
        assert f"{number.name}: finishing the step and saving" in stderr
        assert f"stopped after step {newest_step(run):,} of 100,000 as requested" in stdout
        assert newest_step(run) == last_logged(run) > before + 2


def test_second_interrupt_ends_a_run_at_once(workshop, launch):
    """In the midst of a step, here one of very many batches."""
    process = launch("train.py", "--opt", "rrdb_psnr.yml", "--set", "train.accumulate_batches=100000", cwd=workshop)
    with not_outlived(process):
        log = workshop / "checkpoint/rrdb_psnr/train.log"
        wait_until(lambda: log.exists() and "pairs per step" in log.read_text(), process)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Ctrl-C again stops at once" in stderr
    assert "train.py: interrupted" in stderr.splitlines()


def test_image_that_disappears_while_it_is_used_ends_a_run_with_a_sentence(workshop, prepared, launch):
    for folder in ("train_sub", "train_sub_x4"):
        shutil.copytree(prepared / "DF2K" / folder, workshop / "mine" / folder)
    words = ("--data_root", "mine", "--set", "train.total_steps=100000", "--set", "dataloader.num_workers=2")
    process = launch("train.py", "--opt", "rrdb_psnr.yml", *words, cwd=workshop)
    with not_outlived(process):
        wait_until(lambda: last_logged(workshop / "checkpoint/rrdb_psnr") > 2, process)
        for image in (workshop / "mine/train_sub").glob("*.png"):
            image.unlink()
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "cannot read image mine/train_sub/" in stderr
    assert "Traceback" not in stderr


def last_logged(run: Path) -> int:
    log = run / "metrics.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return json.loads(lines[-1])["step"] if lines and lines[-1].endswith("}") else 0


def test_launcher_brings_the_run_back_after_a_rank_died_or_fails(workshop, launch, command, undisturbed):
    """After the death of a rank all ranks start again, from the last state; when --max-restarts is used up, the next
    death ends torchrun with a failure. The same command then goes on, and ends with the same weights."""
    run, words = workshop / "checkpoint/two", (*TRAIN, "--set", "name=two")
    process, before = launch(*TORCHRUN, "--max-restarts=1", *words, cwd=workshop), 0
    with not_outlived(process):
        for rank in (1, 0):
            wait_until(lambda before=before: newest_step(run) > before, process)
            before = newest_step(run)
            os.kill(ranks_of(process)[rank], signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=120)
    assert process.returncode not in (0, -signal.SIGKILL), stderr
    assert stdout.count("resumes from") == 1
    finished(command(*words, cwd=workshop, processes=2), "resumes from")
    assert_equal_runs(run, undisturbed / "two")


def test_damaged_newest_state_is_named_and_skipped(workshop, command, undisturbed):
    run = workshop / "checkpoint/one"
    shutil.copytree(undisturbed / "one", run)
    newest = run / f"states/state_{STEPS:09d}.pth"
    newest.write_bytes(newest.read_bytes()[:-1000])
    second = run / f"states/state_{STEPS - 1:09d}.pth"
    damage = bytearray(second.read_bytes())
    damage[len(damage) // 2] ^= 1
    second.write_bytes(damage)
    told = finished(command(*TRAIN, "--set", "name=one", cwd=workshop), f"a training state at step {STEPS - 2}")
    assert f"{newest.name} is damaged" in told
    assert f"{second.name} is damaged" in told
    set_aside = {path.stem for path in (run / "states").glob("*.damaged")}
    assert set_aside == {newest.stem, second.stem}
    assert_equal_runs(run, undisturbed / "one")

    for state in (run / "states").glob("state_*.pth"):
        state.write_bytes(b"PK")
    refused = command(*TRAIN, "--set", "name=one", cwd=workshop)
    assert refused.returncode == 2
    assert "none of the 3 training states" in refused.stderr
    assert (run / "generator_latest.pth").exists()


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 24 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here ({mounted.stderr.decode().strip()})")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path, run: Path, process: subprocess.Popen) -> None:
    with suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


def forbid_files_as_large_as_a_state(disk: Path, run: Path, process: subprocess.Popen) -> None:
    """Writing fails as on a full disk, in the midst of a training state; this needs no right to mount."""
    limit_bytes = last_state_file(run).stat().st_size // 2
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit_bytes, resource.RLIM_INFINITY))


def last_state_file(run: Path) -> Path:
    return max((run / "states").glob("state_*.pth"))


@pytest.mark.parametrize(
    ("starve", "disk"), [(forbid_files_as_large_as_a_state, "tmp_path"), (fill, "small_disk")], ids=["limit", "tmpfs"]
)
def test_full_disk_ends_a_run_with_a_sentence_and_keeps_the_old_states(
    workshop, launch, command, request, starve, disk
):
    disk = request.getfixturevalue(disk)
    run = disk / "rrdb_psnr"
    words = ("train.py", "--opt", "rrdb_psnr.yml", "--resume", "auto", "--out_root", disk, "--set",
             "train.save_every_steps=1", "--set", "validation.benchmarks=[]", "--set",
             "train.total_steps=200")  # fmt: skip
    process = launch(*words, cwd=workshop)
    with not_outlived(process):
        wait_until(lambda: newest_step(run) >= 2, process)
        starve(disk, run, process)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "Traceback" not in stderr
    assert stderr.count("train.py: error:") == 1
    assert not [path for path in run.rglob(".*") if path.name.endswith(".tmp")]
    reached = newest_step(run)
    assert last_state(run)["step"] == reached
    (disk / "filler").unlink(missing_ok=True)
    done = command(*words, "--set", f"train.total_steps={reached + 2}", cwd=workshop)
    finished(done, f"a training state at step {reached}")


def test_run_that_will_not_fit_on_its_disk_is_not_started(workshop, command):
    """No disk holds the weights of ten thousand million saves."""
    words = ("--set", "train.total_steps=10000000000", "--set", "train.save_every_steps=1")
    refused = command("train.py", "--opt", "rrdb_psnr.yml", *words, cwd=workshop)
    assert refused.returncode == 2
    assert "will grow by" in refused.stderr
    assert not (workshop / "checkpoint").exists()
