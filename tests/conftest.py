"""A small workshop: photographs prepared as a training set and a benchmark, and the commands of a user."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import skimage.data
import yaml
from PIL import Image

ROOT = Path(__file__).parents[1]
Command = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="session")
def command() -> Command:
    """Runs `python ...` as a user does, in a folder; a script of the project is named by its file."""

    def run(*arguments: object, cwd: Path, timeout_s: int = 240) -> subprocess.CompletedProcess:
        words = [str(ROOT / word) if (ROOT / word).is_file() else word for word in map(str, arguments)]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        return subprocess.run(
            [sys.executable, *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout_s
        )

    return run


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    """DF2K/ and Evaluation/ as the commands make them from photographs, one of them of odd sides. Not to be changed."""
    root = tmp_path_factory.mktemp("prepared")
    astronaut, coffee, cat = skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea()
    photos = {
        "DF2K/train/0001.png": astronaut[:192, 100:292],
        "DF2K/train/0002.png": coffee[:161, :190],
        "DF2K/train/0003.png": astronaut[250:410, :256],
        "Evaluation/Photos/GTmod12/cat.png": cat[100:196, 100:220],
        "Evaluation/Photos/GTmod12/cup.png": coffee[150:234, 200:320],
        "Evaluation/Photos/GTmod12/spoon.png": coffee[250:346, 300:396],
    }
    for name, photo in photos.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo).save(root / name)
    tiles = ["extract_subimages.py", "--n_thread", 1]
    for arguments in (
        ("-m", "data.imresize", "--input", "DF2K/train", "--output", "DF2K/train_x4", "--n_thread", 1),
        ("-m", "data.imresize", "--input", "Evaluation/Photos/GTmod12", "--output", "Evaluation/Photos/LRbicx4"),
        (*tiles, "--input", "DF2K/train", "--output", "DF2K/train_sub", "--crop_size", 96, "--step", 48),
        (*tiles, "--input", "DF2K/train_x4", "--output", "DF2K/train_sub_x4", "--crop_size", 24, "--step", 12),
    ):
        done = command(*arguments, cwd=root)
        assert done.returncode == 0, done.stderr
    return root


@pytest.fixture
def workshop(tmp_path: Path, prepared: Path) -> Path:
    """A folder of one's own with DF2K/ and Evaluation/ in it, and option files for tiny networks."""
    for folder in ("DF2K", "Evaluation"):
        (tmp_path / folder).symlink_to(prepared / folder)
    tiny = {
        "rrdb": {"type": "rrdb", "features": 8, "blocks": 1, "growth": 4},
        "swinir": {"type": "swinir", "embed_dim": 12, "depths": [2], "heads": [2], "window": 4},
    }
    for recipe in (ROOT / "options").glob("train_*.yml"):
        generator = tiny[recipe.stem.split("_")[1]]
        options = {
            "extends": str(recipe),
            "name": recipe.stem.removeprefix("train_"),
            "device": "cpu",
            "generator": generator,
            "dataset": {"lr_patch_px": 16},
            "dataloader": {"batch_size": 2, "num_workers": 1},
            "optimizer": {"learning_rate": 1e-3, "milestones": [3]},
            "train": {"total_steps": 4, "log_every_steps": 1, "save_every_steps": 2},
            "validation": {"every_steps": 2, "benchmarks": ["Photos"]},
        }
        if not recipe.stem.endswith("_psnr"):
            options["discriminator"] = {"features": 8}
            options["semantic_extractor"] = {"weights": "random"}
            options["losses"] = {"perceptual": {"vgg_weights": "random", "layers": {"conv2_2": 1.0}}}
        (tmp_path / f"{options['name']}.yml").write_text(yaml.safe_dump(options))
    return tmp_path
