"""Runs that start from a discriminator: what they take from it, what they save, and what is refused."""

import pytest
import torch

from sed_sr.models.discriminators import UNetDiscriminator
from sed_sr.models.rrdb import RRDBNet
from sed_sr.utils.weights import checkpoint
from tests.conftest import assert_equal_runs, finished, last_state, not_outlived

TRAIN = ("train.py", "--opt", "rrdb_U_real.yml", "--set", "train.save_every_steps=1", "--set",
         "validation.every_steps=4")  # fmt: skip
STILL = ("--set", "optimizer.learning_rate=1e-12", "--set", "optimizer.discriminator_learning_rate=1e-12", "--set",
         "train.total_steps=1")  # fmt: skip


@pytest.fixture
def discriminator(workshop):
    """The weights of a plain U-Net of the size of the recipes here."""
    torch.manual_seed(7)
    state = UNetDiscriminator(semantic_channels=None, features=8).state_dict()
    checkpoint.save({"params": state}, workshop / "netD.pth")
    return state


def discriminator_of(run):
    return last_state(run)["train_step"]["discriminator"]


def weights_of(state):
    """Without singular vectors, which also change if the learning rate is 0."""
    return {name: value for name, value in state.items() if not name.endswith(("._u", "._v"))}


def test_discriminator_of_a_new_run_is_that_of_the_file(workshop, make_workshop, launch_ranks, discriminator):
    """The second of two processes works in a folder without the file: it receives the weights."""
    (workshop / "second").mkdir()
    folders = [workshop, make_workshop(workshop / "second")]
    processes = launch_ranks(*TRAIN, *STILL, "--resume_d", "netD.pth", folders=folders)
    with not_outlived(*processes):
        said = [process.communicate(timeout=180) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert "discriminator: starts from netD.pth: a plain U-Net (8 features)" in said[0][0]
    run = workshop / "checkpoint/rrdb_U_real"
    theirs = weights_of(discriminator_of(run))
    assert theirs.keys() == weights_of(discriminator).keys()
    for name, value in theirs.items():
        torch.testing.assert_close(value, discriminator[name], rtol=0, atol=1e-9)
    assert "start_discriminator_from: netD.pth" in (run / "options.yml").read_text()


def test_semantic_discriminator_starts_from_the_layers_of_a_plain_one(workshop, command, discriminator):
    words = ("--set", "train.start_discriminator_from=netD.pth")
    said = finished(command("train.py", "--opt", "rrdb_U+SeD_real.yml", *STILL, *words, cwd=workshop))
    own = discriminator_of(workshop / "checkpoint/rrdb_U+SeD_real")
    assert f"netD.pth: a plain U-Net (8 features); {len(discriminator)} of {len(own)} tensors" in said
    for name, value in weights_of(discriminator).items():
        torch.testing.assert_close(own[name], value, rtol=0, atol=1e-9)


def test_saved_discriminator_is_that_of_the_newest_state(workshop, command):
    finished(command(*TRAIN, "--set", "train.total_steps=2", "--set", "validation.benchmarks=[]", cwd=workshop))
    run = workshop / "checkpoint/rrdb_U_real"
    saved, state = checkpoint.load(run / "discriminator_latest.pth"), last_state(run)
    assert (saved["step"], saved["options"]) == (2, state["options"])
    theirs = state["train_step"]["discriminator"]
    assert saved["params"].keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in saved["params"].items())


def test_run_without_a_discriminator_saves_none(workshop, command):
    finished(command("train.py", "--opt", "rrdb_psnr.yml", "--set", "train.total_steps=2", cwd=workshop))
    run = workshop / "checkpoint/rrdb_psnr"
    assert (run / "generator_latest.pth").exists()
    assert not (run / "discriminator_latest.pth").exists()


def test_run_that_started_from_a_discriminator_resumes_with_its_own(workshop, command, discriminator):
    """Bit for bit, and without the file."""
    train = (*TRAIN, "--set", "train.total_steps=4", "--resume_d", "netD.pth", "--resume", "auto")
    finished(command(*train, "--set", "name=whole", cwd=workshop))
    finished(command(*train, "--set", "name=parts", "--set", "train.total_steps=3", cwd=workshop))
    # The state after the third step was validated too: go on from the second.
    (workshop / "checkpoint/parts/states/state_000000003.pth").unlink()
    (workshop / "netD.pth").unlink()
    finished(command(*train, "--set", "name=parts", cwd=workshop), "the discriminator is that of the state, not netD")
    assert_equal_runs(workshop / "checkpoint/parts", workshop / "checkpoint/whole")


GENERATOR = {"params": RRDBNet(features=8, blocks=1, growth=4).state_dict()}
WIDER = {"params": UNetDiscriminator(semantic_channels=None, features=16).state_dict()}


@pytest.mark.parametrize(
    ("content", "sentence", "processes"),
    [
        (None, "there is no weight file netD.pth", 1),
        (GENERATOR, "netD.pth holds RRDB (1 block", 1),
        (WIDER, "netD.pth holds a plain U-Net (16 features), with features 16 where the options ask for 8", 2),
    ],
    ids=["missing", "generator", "wider"],
)
def test_what_does_not_fit_ends_before_anything_is_written(workshop, command, content, sentence, processes):
    if content is not None:
        checkpoint.save(content, workshop / "netD.pth")
    done = command(*TRAIN, "--resume_d", "netD.pth", cwd=workshop, processes=processes)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert sentence in done.stderr
    assert not (workshop / "checkpoint").exists()


def test_check_reports_a_discriminator_that_does_not_fit(workshop, command):
    checkpoint.save(WIDER, workshop / "netD.pth")
    done = command(*TRAIN, "--resume_d", "netD.pth", "--check", cwd=workshop)
    assert done.returncode == 2
    (row,) = [line for line in done.stdout.splitlines() if "FAILED" in line]
    assert "discriminator" in row
    assert not (workshop / "checkpoint").exists()
