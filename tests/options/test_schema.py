"""Recipes are valid, and their values are the published ones."""

import re
from pathlib import Path

import pytest

from sed_sr.options.recipe import load_options

RECIPES = sorted((Path(__file__).parents[2] / "options").glob("*.yml"))
REAL = sorted(path for path in RECIPES if path.stem.startswith("train_") and path.stem.endswith("_real"))
BASE = {"name": "run", "generator": {"type": "rrdb"}, "discriminator": {"type": "patch"}}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_valid_and_named_like_its_file(recipe):
    assert load_options(recipe).name == recipe.stem


def test_defaults_are_the_published_recipe():
    """The released configuration: losses, optimiser, schedule, patches, batch."""
    options = load_options(BASE)
    assert (options.losses.pixel.weight, options.losses.perceptual.weight, options.losses.gan.weight) == (1, 0.1, 0.01)
    assert options.losses.gan.type == "vanilla"
    assert options.losses.perceptual.layers == {
        "conv1_2": 0.1, "conv2_2": 0.1, "conv3_4": 1, "conv4_4": 1, "conv5_4": 1,
    }  # fmt: skip
    assert (options.optimizer.learning_rate, options.optimizer.discriminator_learning_rate) == (1e-4, 1e-4)
    assert options.optimizer.betas == (0.9, 0.99)
    assert (options.optimizer.milestones, options.optimizer.decay) == ((100_000, 200_000), 0.5)
    assert (options.train.total_steps, options.train.ema_decay, options.seed) == (300_000, None, 1)
    assert (options.scale, options.dataset.hr_patch_px, options.train.total_batch_size) == (4, 256, 32)


def test_perceptual_weight_is_1_in_unet_recipes_and_a_tenth_of_it_in_patch_recipes():
    others = ("psnr", "_real", "ESRGAN", "LDL")
    classical = [path for path in RECIPES if not any(other in path.stem for other in others)]
    weights = {path.stem: load_options(path).losses.perceptual for path in classical}
    for name, perceptual in weights.items():
        assert perceptual.model != "vgg19" or perceptual.weight == (1.0 if "_U" in name else 0.1), name


@pytest.mark.parametrize("recipe", ["train_rrdb_ESRGAN", "train_rrdb_LDL", "train_swinir_LDL"])
def test_recipes_of_the_other_rows_have_their_published_numbers(recipe):
    """BasicSR's train_ESRGAN_x4, and LDL's released code."""
    options = load_options(RECIPES[0].with_name(f"{recipe}.yml"))
    losses, optimizer, ldl = options.losses, options.optimizer, "LDL" in recipe
    assert (losses.pixel.weight, losses.perceptual.weight, losses.gan.weight) == (0.01, 1, 0.005)
    assert (losses.gan.type, options.discriminator.type, options.discriminator.features) == ("relativistic", "vgg", 64)
    five = {"conv1_2": 0.1, "conv2_2": 0.1, "conv3_4": 1, "conv4_4": 1, "conv5_4": 1}
    assert losses.perceptual.layers == (five if ldl else {"conv5_4": 1})
    assert (losses.artifact.weight if losses.artifact else None) == (1 if ldl else None)
    assert (options.dataset.hr_patch_px, options.dataloader.batch_size, options.train.ema_decay) == (128, 16, 0.999)
    assert (options.train.total_steps, options.train.total_batch_size) == ((300_000, 64) if ldl else (400_000, 16))
    assert (optimizer.learning_rate, optimizer.discriminator_learning_rate, optimizer.decay) == (1e-4, 1e-4, 0.5)
    assert optimizer.milestones == (() if ldl else (50_000, 100_000, 200_000, 300_000))
    assert options.test.paper_row == {"train_rrdb_ESRGAN": "ESRGAN", "train_rrdb_LDL": "RRDB+LDL"}.get(
        recipe, "SwinIR+LDL"
    )


STAGES = {  # train_realesrgan_x4plus: first stage, second stage
    "blur_probability": (1, 0.8),
    "kernel_px": ((7, 21), (7, 21)),
    "sinc_probability": (0.1, 0.1),
    "sigma_px": ((0.2, 3), (0.2, 1.5)),
    "beta_generalized": ((0.5, 4), (0.5, 4)),
    "beta_plateau": ((1, 2), (1, 2)),
    "resize_range": ((0.15, 1.5), (0.3, 1.2)),
    "gaussian_noise_probability": (0.5, 0.5),
    "gaussian_noise_sigma": ((1, 30), (1, 25)),
    "poisson_noise_scale": ((0.05, 3), (0.05, 2.5)),
    "grey_noise_probability": (0.4, 0.4),
    "jpeg_quality": ((30, 95), (30, 95)),
}


@pytest.mark.parametrize("recipe", REAL, ids=lambda path: path.stem)
def test_real_sr_recipe_degrades_as_published(recipe):
    options = load_options(recipe)
    degradation = options.degradation
    stages = (degradation.first, degradation.second)
    for key, expected in STAGES.items():
        assert tuple(getattr(stage, key) for stage in stages) == expected, key
    for stage in stages:
        assert list(stage.kernel_kinds.model_dump().values()) == [0.45, 0.25, 0.12, 0.03, 0.12, 0.03]
    resizes = [list(stage.resize.model_dump().values()) for stage in stages]
    assert resizes == [[0.2, 0.7, 0.1], [0.3, 0.4, 0.3]]
    assert (degradation.final_sinc_probability, degradation.hr_px, degradation.pool_pairs) == (0.8, 400, 180)
    assert degradation.sharpening.model_dump() == {"kernel_px": 51, "weight": 0.5, "threshold": 10}
    assert set(degradation.sharpened_targets) == {"pixel", "perceptual"}
    assert (options.dataset.lr, options.dataset.hr_patch_px, options.train.ema_decay) == (None, 256, 0.999)
    assert options.dataset.augment == ("flip",)


def test_real_sr_recipes_cover_every_pair_of_networks_with_the_published_losses():
    generators, kinds = ("rrdb", "swinir"), {"P": "patch", "U": "unet"}
    expected = {f"train_{g}_{d}{s}_real" for g in generators for d in kinds for s in ("", "+SeD")}
    assert {path.stem for path in REAL} == expected | {f"train_{g}_psnr_real" for g in generators}
    for path in REAL:
        options = load_options(path)
        assert options.generator.type == path.stem.split("_")[1]
        if "psnr" in path.stem:
            assert (options.discriminator, options.losses.perceptual, options.losses.gan) == (None, None, None)
            assert (options.optimizer.learning_rate, options.train.total_steps) == (2e-4, 1_000_000)
        else:
            losses = options.losses
            assert (losses.pixel.weight, losses.perceptual.weight, losses.gan.weight) == (1, 1, 0.1)
            assert options.discriminator.type == kinds[path.stem.split("_")[2][0]]
            assert options.discriminator.fusion == ("cross-attention" if "+SeD" in path.stem else "none")


def test_recipes_of_other_scales_differ_from_those_for_x4_in_scale_and_patch_only():
    for recipe in (path for path in RECIPES if re.search(r"_x\d$", path.stem)):
        base = load_options(recipe.with_stem(recipe.stem[:-3]))
        options = load_options(recipe)
        assert (options.name, options.scale) == (recipe.stem, int(recipe.stem[-1]))
        dataset = options.dataset.model_copy(update={"hr_patch_px": base.dataset.hr_patch_px})
        assert options.model_copy(update={"name": base.name, "scale": 4, "dataset": dataset}) == base, recipe.stem


def test_number_of_workers_is_automatic_in_every_recipe_for_training():
    recipes = [path for path in RECIPES if path.stem.startswith("train_")]
    assert {load_options(path).dataloader.num_workers for path in recipes} == {"auto"}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_options_as_yaml_read_back_equal(recipe, tmp_path):
    options = load_options(recipe)
    file = tmp_path / "resolved.yml"
    file.write_text(options.as_yaml())
    assert load_options(file) == options


def test_options_cannot_be_changed():
    options = load_options(BASE)
    with pytest.raises(ValueError, match="frozen"):
        options.train.total_steps = 5
