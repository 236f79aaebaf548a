"""Other scales than x4, from the preparation of the data to the scores, as a user runs the commands."""

import shutil

import pytest
import torch

from benchmarks.random_step import random_recipe, random_step
from sed_sr.data.images import image_size
from tests.conftest import ROOT, finished
from tests.test_scoring import results_of

SIZES = {
    "rrdb": {"features": 8, "blocks": 1, "growth": 4},
    "swinir": {"embed_dim": 12, "depths": [2], "heads": [2], "window": 4},
}
UPSAMPLER = {1: "none", 2: "nearest+conv", 3: "pixelshuffledirect", 8: "pixelshuffle"}


@pytest.mark.parametrize("scale", UPSAMPLER)
@pytest.mark.parametrize("generator", SIZES)
def test_step_against_a_semantic_discriminator_has_the_sizes_of_its_scale(generator, scale):
    sizes = SIZES[generator] | ({"upsampler": UPSAMPLER[scale]} if generator == "swinir" else {})
    options = random_recipe(
        str(ROOT / f"options/train_{generator}_P+SeD.yml"),
        scale=scale,
        dataset__hr_patch_px=48,
        dataloader__batch_size=2,
        discriminator__features=8,
        **{f"generator__{name}": value for name, value in sizes.items()},
    )
    step, batch = random_step(options, torch.device("cpu"))
    assert (batch.lr.shape, batch.hr.shape) == ((2, 3, 48 // scale, 48 // scale), (2, 3, 48, 48))
    before = [parameter.clone() for parameter in step.generator.parameters()]
    step(batch)  # moves nothing if it is not finite
    assert not any(map(torch.equal, before, step.generator.parameters()))


def test_x3_from_photographs_to_scores(workshop, command):
    photos, df2k = workshop / "Own/Photos", workshop / "sets"
    shutil.copytree(workshop / "Evaluation/Photos/GTmod12", photos / "GTmod12")
    for source, target in ((photos / "GTmod12", df2k / "lr"), (photos / "GTmod12", photos / "LRbicx3")):
        finished(
            command("-m", "data.prepare.lr_images", "--input", source, "--output", target, "--scale", 3, cwd=workshop)
        )
    sets = ("--input_lr", df2k / "lr", "--output", df2k / "train_sub", "--output_lr", df2k / "train_sub_x3")
    cut = ("--input", photos / "GTmod12", *sets, "--scale", 3, "--crop_size", 72, "--step", 24)
    finished(command("extract_subimages.py", *cut, cwd=workshop))
    train = ("train.py", "--opt", "rrdb_P+SeD_x3.yml", "--data_root", df2k, "--data_test_root", photos.parent)
    train = (*train, "--set", "dataset.hr_patch_px=48")
    log = finished(command(*train, cwd=workshop), "step 4  Photos: psnr")
    weights = "checkpoint/rrdb_P+SeD_x3/generator_latest.pth"
    words = (
        "--data_test_root",
        photos.parent,
        "--benchmarks",
        "Photos",
        "--metrics",
        "psnr",
        "ssim",
        "--output_path",
        "out",
    )
    finished(command("test.py", "--weights", weights, *words, cwd=workshop))
    (result,) = results_of(workshop / "out")["weights"].values()
    means = result["benchmarks"]["Photos"]["mean"]
    assert result["scale"] == 3
    assert f"step 4  Photos: psnr {means['psnr']:.4f}  ssim {means['ssim']:.4f}" in log
    sr = image_size(next((workshop / "out").glob("*/Photos/cat.png")))
    assert sr == tuple(3 * side for side in image_size(photos / "LRbicx3/catx3.png"))

    other = command(*train, "--resume", "auto", "--set", "scale=4", "--set", "dataset.lr=train_sub_x3", cwd=workshop)
    assert other.returncode == 2
    assert "was trained with scale 3, the options say 4" in other.stderr
