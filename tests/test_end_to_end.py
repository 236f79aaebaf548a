"""The whole way as a user goes it: images, sub-images, training on one process and on two, resuming, scores."""

import json
import math
from functools import partial
from pathlib import Path

import cv2
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sed_sr.data.images import read_rgb
from tests.conftest import free_endpoint, last_state

PSNR, SED, REAL = (f"train.py --opt {recipe}.yml" for recipe in ("rrdb_psnr", "rrdb_P+SeD", "rrdb_psnr_real"))
TORCHRUN = "-m torch.distributed.run --standalone --nproc_per_node=2"
LAUNCH = "-m torch.distributed.launch --nproc_per_node=2"  # as the released code documents it


def finished(done, *expected: str) -> str:
    assert done.returncode == 0, done.stderr + done.stdout
    for text in expected:
        assert text in done.stdout
    return done.stdout


def metrics_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "generator_latest.pth", weights_only=True)["params"]


def test_from_photographs_to_scores(workshop, command):
    """PSNR-oriented training, SeD from its weights, scores: every file that the README promises is there and true.

    SeD trains in bfloat16, and its validations give to the last digit what test.py gives; both in new interpreters.
    """
    finished(command("train.py", "--opt", "rrdb_psnr.yml", cwd=workshop))
    start = "checkpoint/rrdb_psnr/generator_latest.pth"
    metrics = ("psnr", "ssim", "gmsd", "piqe")
    settings = ("train.precision=bf16", f"validation.metrics=[{','.join(metrics)}]", "validation.best_by=piqe")
    words = [word for setting in settings for word in ("--set", setting)]
    done = command("train.py", "--opt", "rrdb_P+SeD.yml", "--resume", start, *words, cwd=workshop, new=True)
    finished(done, "starts from", "random", "device: cpu, bf16")

    run = workshop / "checkpoint/rrdb_P+SeD"
    present = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert {"options.yml", "train.log", "metrics.jsonl", "generator_latest.pth", "generator_000000004.pth",
            "states/state_000000004.pth", "images/step_000000004/Photos/cat.png"} <= present  # fmt: skip
    assert not [name for name in present if "tmp" in name]
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert {"train/pixel", "train/d_loss", "validation/Photos/psnr"} <= set(events.Tags()["scalars"])
    assert {"Photos/cat", "discriminator/attention", "discriminator/real_or_fake_SR"} <= set(events.Tags()["images"])
    lines = metrics_of(run)
    trained = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in trained] == [1, 2, 3, 4]
    for line in trained:
        for term in ("pixel", "perceptual", "gan", "d_loss", "d_real", "d_fake"):
            assert math.isfinite(line[term])
    assert [line["learning_rate"] for line in trained] == [1e-3, 1e-3, 5e-4, 5e-4]  # of the step that comes next

    scored = command("test.py", "--opt", "rrdb_P+SeD.yml", "--weights", run / "generator_latest.pth", "--benchmarks",
                     "Photos", "--metrics", *metrics, "--output_path", "results", cwd=workshop, new=True)  # fmt: skip
    finished(scored, "Photos", "PSNR-Y")
    (weights,) = json.loads((workshop / "results/results.json").read_text())["weights"]
    results = weights["benchmarks"]["Photos"]
    assert results["images"].keys() == {"cat", "cup", "spoon"}
    validated = [line for line in lines if line["kind"] == "validation/Photos"][-1]
    for metric in metrics:
        assert results["mean"][metric] == pytest.approx(sum(row[metric] for row in results["images"].values()) / 3)
    assert {metric: validated[metric] for metric in metrics} == results["mean"]  # what is validated is what is saved
    assert (run / "generator_best.pth").exists()
    sr = cv2.imread(str(workshop / "results/rrdb_P+SeD/Photos/cat.png"))
    assert sr.shape == (96, 120, 3)
    assert (read_rgb(run / "images/step_000000004/Photos/cat.png") == sr[:, :, ::-1]).all()


RECIPES = ["rrdb_U+SeD", "swinir_P+SeD", "swinir_U+SeD", "rrdb_P", "swinir_U", "swinir_psnr", "swinir_P_real",
           "rrdb_ESRGAN", "swinir_LDL"]  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_pair_of_networks_trains(workshop, command, recipe):
    finished(command("train.py", "--opt", f"{recipe}.yml", "--set", "train.total_steps=2", cwd=workshop))
    trained = [line for line in metrics_of(workshop / "checkpoint" / recipe) if line["kind"] == "train"]
    assert [line["step"] for line in trained] == [1, 2]
    assert all(math.isfinite(value) for line in trained for key, value in line.items() if key != "kind")


def test_artifact_loss_goes_with_a_semantic_discriminator(workshop, command):
    """LDL with SeD, by two options."""
    words = ("--set", "losses.artifact.weight=1", "--set", "train.ema_decay=0.999", "--set", "train.total_steps=2")
    finished(command("train.py", "--opt", "rrdb_P+SeD.yml", *words, cwd=workshop))
    trained = [line for line in metrics_of(workshop / "checkpoint/rrdb_P+SeD") if line["kind"] == "train"]
    assert all(line["artifact"] > 0 and line["gan"] > 0 for line in trained)


@pytest.mark.parametrize("launcher", [TORCHRUN, LAUNCH])
def test_two_processes_make_one_run(workshop, command, launcher):
    """The run of two processes with one image each is the run of one process with two."""
    if launcher == LAUNCH:
        launcher += f" --master_port={free_endpoint().split(':')[1]}"
    sizes = {"one": 2, "two": 1}
    for name, size in sizes.items():
        started = launcher.split() if name == "two" else ()
        done = command(*started, "train.py", "--opt", "rrdb_psnr.yml", "--set", f"name={name}", "--set",
                       f"dataloader.batch_size={size}", cwd=workshop)  # fmt: skip
        finished(done)
    one, two = (metrics_of(workshop / "checkpoint" / name) for name in sizes)
    assert [(line["kind"], line["step"]) for line in one] == [(line["kind"], line["step"]) for line in two]
    for ours, theirs in zip(one, two, strict=True):
        for metric in {"pixel", "psnr", "ssim"} & ours.keys():
            assert ours[metric] == pytest.approx(theirs[metric], rel=1e-3)
    log = (workshop / "checkpoint/two/train.log").read_text()
    assert "2 pairs per step (2 processes x batch size 1 x 1 accumulated)" in log
    assert log.count("step 4/4") == 1


@pytest.mark.parametrize(("recipe", "processes"), [("swinir_U+SeD_real", 1), ("rrdb_psnr_real", 2), ("swinir_LDL", 2)])
def test_resumed_run_equals_the_undisturbed_one(workshop, command, recipe, processes):
    """Bit for bit, networks, moments, pool of pairs and all, from the middle of an epoch, on one process and on two.

    SwinIR's stochastic depth and the degradation draw numbers; the pool is full from the second step on.
    """
    train = ("train.py", "--opt", f"{recipe}.yml")
    run = partial(command, cwd=workshop, processes=processes)
    finished(run(*train, "--set", "name=whole"))
    stopped = (*train, "--set", "name=parts", "--resume", "auto")
    finished(run(*stopped, "--set", "train.total_steps=2"), "no training state yet")
    finished(run(*stopped), "a training state at step 2", "train.total_steps was 2, is 4")
    whole, parts = (
        torch.load(workshop / f"checkpoint/{name}/states/state_000000004.pth", weights_only=True)
        for name in ("whole", "parts")
    )
    assert whole["step"] == parts["step"] == 4
    assert equal(whole["loop"], parts["loop"])
    assert equal(whole["train_step"], parts["train_step"])
    finished(run(*stopped), "nothing to do")


@pytest.mark.parametrize("processes", [1, 2])
def test_hr_images_alone_train_and_resume_exactly(workshop, command, processes):
    """Whole images of odd sizes, directly in the folder that is given."""
    train = ("train.py", "--opt", "rrdb_P.yml", "--data_root", "DF2K/train", "--set", "dataset.hr=.",
             "--set", "dataset.lr=null")  # fmt: skip
    run = partial(command, cwd=workshop, processes=processes)
    finished(run(*train, "--set", "name=whole"), "of HR images: 3 in DF2K/train, with bicubic LR")
    stopped = (*train, "--set", "name=parts", "--resume", "auto")
    finished(run(*stopped, "--set", "train.total_steps=2"))
    finished(run(*stopped), "a training state at step 2")
    whole, parts = (last_state(workshop / "checkpoint" / name) for name in ("whole", "parts"))
    assert equal(whole["loop"], parts["loop"])
    assert equal(whole["train_step"], parts["train_step"])


def test_older_state_does_not_write_over_a_newer_one(workshop, command):
    finished(command("train.py", "--opt", "rrdb_psnr.yml", cwd=workshop))
    older = "checkpoint/rrdb_psnr/states/state_000000002.pth"
    refused = command("train.py", "--opt", "rrdb_psnr.yml", "--resume", older, cwd=workshop)
    assert refused.returncode == 2
    assert "newer state" in refused.stderr


def equal(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


MISTAKES = {  # the words of a command, and what its sentence must say
    f"{PSNR} --set train.totalsteps=3": "did you mean total_steps?",
    "train.py --opt rrdb_psn.yml": "did you mean rrdb_psnr.yml?",
    f"{PSNR} --data_root nowhere": "nowhere/train_sub",
    f"{PSNR} --set validation.benchmarks=[Photo]": "did you mean Photos?",
    f"{PSNR} --set dataset.hr_patch_px=256": "smaller than the LR patch",
    f"{PSNR} --resume nothing.pth": "nothing.pth",
    f"{SED} --set semantic_extractor.weights=RN5O.pt": "did you mean RN50.pt?",
    f"{SED} --set losses.perceptual.layers.conv9_9=1": "conv9_9",
    f"{SED} --set semantic_extractor.layer=layer9": "layer9",
    f"{SED} --set semantic_extractor.model=clip/RN5O": "RN50",
    f"{REAL} --set dataset.hr.OST=1": "OST",
    f'{REAL} --set dataset.hr={{"train_sub":1,"./train_sub":1}}': "names a folder twice",
    f"{REAL} --set degradation.first.jpeg_quality=[95,30]": "jpeg_quality",
    f"{PSNR} --set dataset.lr=null --set dataset.hr_patch_px=256": "smaller than the HR patch of 256x256",
}


@pytest.mark.parametrize(("words", "sentence"), MISTAKES.items(), ids=MISTAKES)
def test_mistake_ends_with_one_sentence_before_anything_is_written(workshop, command, words, sentence):
    before = sorted(workshop.iterdir())
    done = command(*words.split(), cwd=workshop)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert sorted(workshop.iterdir()) == before


def test_existing_run_is_not_written_over(workshop, command):
    arguments = ("train.py", "--opt", "rrdb_psnr.yml", "--set", "train.total_steps=1")
    finished(command(*arguments, cwd=workshop))
    weights = weights_of(workshop / "checkpoint/rrdb_psnr")
    refused = command(*arguments, "--set", "seed=2", cwd=workshop)
    assert refused.returncode == 2
    assert "--resume auto" in refused.stderr
    after = weights_of(workshop / "checkpoint/rrdb_psnr")
    assert all(torch.equal(weights[name], after[name]) for name in weights)


def test_weights_of_another_architecture_are_refused(workshop, command):
    finished(command("train.py", "--opt", "swinir_psnr.yml", "--set", "train.total_steps=1", cwd=workshop))
    weights = "checkpoint/swinir_psnr/generator_latest.pth"
    refused = command("train.py", "--opt", "rrdb_P+SeD.yml", "--resume", weights, cwd=workshop)
    assert refused.returncode == 2
    assert "SwinIR" in refused.stderr
    assert not (workshop / "checkpoint/rrdb_P+SeD").exists()
    state = "checkpoint/swinir_psnr/states/state_000000001.pth"
    refused = command("train.py", "--opt", "rrdb_psnr.yml", "--resume", state, cwd=workshop)
    assert refused.returncode == 2
    assert "generator" in refused.stderr


def test_image_that_becomes_unreadable_ends_training_with_its_name(workshop, command, prepared):
    (workshop / "DF2K").unlink()
    for name in ("train_sub", "train_sub_x4"):
        (workshop / "DF2K" / name).mkdir(parents=True)
        for image in (prepared / "DF2K" / name).iterdir():
            content = image.read_bytes()
            (workshop / "DF2K" / name / image.name).write_bytes(content[:60] if name == "train_sub" else content)
    # a new interpreter, whose shutdown the workers of the loader would hold up if the traceback held on to them
    done = command("train.py", "--opt", "rrdb_psnr.yml", cwd=workshop, new=True)
    assert done.returncode == 2
    assert "DF2K/train_sub/000" in done.stderr
    assert "Traceback" not in done.stderr
