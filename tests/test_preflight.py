"""All problems are reported together before a run starts, and `--check` shows that a run can start."""

from pathlib import Path

import pytest


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def own_pairs(workshop, prepared) -> Path:
    """A copy of the training set, which a test may damage."""
    for folder in ("train_sub", "train_sub_x4"):
        (workshop / "mine" / folder).mkdir(parents=True)
        for image in (prepared / "DF2K" / folder).iterdir():
            (workshop / "mine" / folder / image.name).write_bytes(image.read_bytes())
    return workshop / "mine"


def test_check_reports_what_it_found_and_writes_nothing(workshop, command):
    before = files_in(workshop)
    done = command("train.py", "--opt", "rrdb_P+SeD.yml", "--check", cwd=workshop)
    assert done.returncode == 0, done.stderr
    for found in (
        "training set",
        "readable",
        "LR is HR downscaled",
        "Photos",
        "disk",
        "networks",
        "memory, process 0",
    ):
        assert found in done.stdout
    assert "rrdb_P+SeD can start" in done.stdout
    assert files_in(workshop) == before


def test_run_without_validation_needs_no_weights_of_its_metrics(workshop, command, monkeypatch):
    monkeypatch.setenv("SED_OFFLINE", "1")
    words = ("train.py", "--opt", "rrdb_psnr.yml", "--set", "validation.metrics=[lpips]")
    assert "alexnet" in command(*words, cwd=workshop).stderr
    done = command(*words, "--set", "validation.benchmarks=[]", cwd=workshop)
    assert done.returncode == 0, done.stderr
    assert "no validation, save every 2" in done.stdout


def test_all_problems_are_reported_together(workshop, command):
    done = command(
        "train.py", "--opt", "rrdb_P+SeD.yml", "--data_root", "nowhere", "--resume", "nothing.pth",
        "--set", "validation.benchmarks=[Photo,Photos]", "--set", "semantic_extractor.weights=RN5O.pt", "--set",
        "losses.perceptual.weights=rrdb_psnr.yml", "--set", "device=cuda", cwd=workshop,
    )  # fmt: skip
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    for part in ("nowhere/train_sub", "did you mean Photos?", "did you mean RN50.pt?", "nothing.pth", "no CUDA device"):
        assert len([line for line in lines if part in line]) == 1, done.stderr
    assert len(lines) == 5, done.stderr


def test_check_reads_every_image_and_compares_the_pairs(own_pairs, workshop, command):
    """An image that is damaged after its header, and an LR folder whose images are permuted."""
    train = ("train.py", "--opt", "rrdb_psnr.yml", "--data_root", own_pairs)
    hr = sorted((own_pairs / "train_sub").glob("*.png"))
    hr[3].write_bytes(hr[3].read_bytes()[:-2000])
    done = command(*train, "--check", cwd=workshop)
    assert done.returncode == 2
    table = "".join(done.stdout.split()).replace("│", "")  # long lines are folded
    assert f"readableFAILED1of66imagesin{own_pairs}" in table
    assert hr[3].name in table
    assert "networks?notchecked" in table
    assert "cannot start" in done.stderr

    hr[3].write_bytes(hr[2].read_bytes())
    lr = sorted((own_pairs / "train_sub_x4").glob("*.png"))
    contents = [image.read_bytes() for image in lr]
    for image, content in zip(lr, contents[7:] + contents[:7], strict=True):
        image.write_bytes(content)
    done = command(*train, cwd=workshop)  # every run compares some pairs
    assert done.returncode == 2
    assert "shows another picture" in done.stderr
    assert not (workshop / "checkpoint").exists()
