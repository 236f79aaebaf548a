"""Values that do not go together are refused in one sentence that names both."""

from pathlib import Path

import pytest

from sed_sr.options.errors import UserError
from sed_sr.options.recipe import Override, load_options

REAL = Path(__file__).parents[2] / "options" / "train_rrdb_P+SeD_real.yml"
PSNR = REAL.with_name("train_rrdb_psnr.yml")
ESRGAN = REAL.with_name("train_rrdb_ESRGAN.yml")
BASE = {"name": "run", "generator": {"type": "rrdb"}, "discriminator": {"type": "patch"}}
CONFLICTS = {
    "losses.gan=null": ["losses.gan", "discriminator"],
    "discriminator=null": ["losses.gan", "discriminator is null"],
    "dataset.hr_patch_px=120": ["dataset.hr_patch_px", "120", "multiple of 16"],
    "scale=3": ["dataset.hr_patch_px", "256", "multiple of the scale, 3"],
    "dataset.hr_patch_px=16": ["dataset.hr_patch_px", "16", "at least 32"],
    "discriminator.features=12": ["discriminator.features", "12", "multiple of 8"],
    "generator={type: swinir, depths: [2]}": ["generator.heads", "6 entries", "depths has 1"],
    "generator={type: swinir, embed_dim: 64}": ["generator.heads", "6", "embed_dim 64"],
    "optimizer.milestones=[5,5]": ["optimizer.milestones", "[5, 5]"],
    "optimizer.warmup_steps=300000": ["optimizer.warmup_steps", "300000 steps"],
    "validation.best_by=lpips": ["validation.best_by", "lpips", "validation.metrics"],
    "discriminator.type=vgg": ["discriminator.fusion", "cross-attention", "no semantics", "discriminator.fusion: none"],
    "discriminator={type: vgg, fusion: concatenation}": ["discriminator.fusion", "set discriminator.fusion: none"],
    "losses.artifact.weight=2": ["losses.artifact", "train.ema_decay is null"],
    "dataset.hr={a: 1, b: 1}": ["dataset.hr", "2 folders", "dataset.lr"],
}
CONFLICTS_OF_ESRGAN = {
    "dataset.hr_patch_px=64": ["dataset.hr_patch_px", "64", "128 or 256"],
    "dataset.hr_patch_px=120": ["dataset.hr_patch_px", "120", "128 or 256"],
}
CONFLICTS_OF_REAL_SR = {
    "degradation.hr_px=100": ["hr_px", "100", "hr_patch_px (256)"],
    "degradation.hr_px=402": ["hr_px", "402", "multiple of the scale, 4"],
    "degradation.sharpening=null": ["sharpened_targets", "sharpening, which is null"],
    "degradation.sharpening.kernel_px=50": ["kernel_px", "50", "odd"],
    "degradation.first.kernel_px=[7,20]": ["first.kernel_px", "[7, 20]", "odd"],
    "degradation.second.kernel_px=[21,7]": ["second.kernel_px", "[21, 7]", "smaller one first"],
    "degradation.first.resize.up=0.5": ["first.resize", "1.3", "add up to 1"],
    "degradation.second.kernel_kinds.iso=0": ["second.kernel_kinds", "0.55", "add up to 1"],
    "degradation.first.sigma_px=[3,1]": ["first.sigma_px", "[3, 1]", "lower end"],
    "degradation.first.jpeg_quality=[95,30]": ["first.jpeg_quality", "[95.0, 30.0]", "lower one first"],
    "degradation.first.resize_range=[1.1,1.5]": ["first.resize_range", "1.1", "should contain 1"],
    "degradation.second.beta_plateau=[2,3]": ["second.beta_plateau", "[2.0, 3.0]", "should contain 1"],
    "dataset.lr=train_sub_x4": ["dataset.lr", "train_sub_x4", "set dataset.lr: null"],
}
CONFLICTS_OF_PSNR = {
    "train.start_discriminator_from=D.pth": ["train.start_discriminator_from", "discriminator is null"],
    "losses.r1={}": ["losses.r1", "needs a discriminator"],
    "losses.feature_matching={}": ["losses.feature_matching", "needs a discriminator"],
    "losses={pixel: null}": ["losses", "has no term"],
}


@pytest.mark.parametrize(
    ("recipe", "setting", "fragments"),
    [
        *((PSNR, setting, fragments) for setting, fragments in CONFLICTS_OF_PSNR.items()),
        *((ESRGAN, setting, fragments) for setting, fragments in CONFLICTS_OF_ESRGAN.items()),
        *((BASE, setting, fragments) for setting, fragments in CONFLICTS.items()),
        *((REAL, setting, fragments) for setting, fragments in CONFLICTS_OF_REAL_SR.items()),
    ],
    ids=[*CONFLICTS_OF_PSNR, *CONFLICTS_OF_ESRGAN, *CONFLICTS, *CONFLICTS_OF_REAL_SR],
)
def test_conflict_is_refused_in_one_sentence(recipe, setting, fragments):
    with pytest.raises(UserError) as caught:
        load_options(recipe, [Override.parse(setting)])
    sentence = str(caught.value)
    assert "\n" not in sentence
    for fragment in fragments:
        assert fragment in sentence


@pytest.mark.parametrize(
    ("loss", "smallest_px"),
    [("ms_ssim={}", 11), ("lpips={net: vgg}", 16), ("lpips={net: alex}", 31)],
)
def test_patches_that_are_too_small_for_a_loss_are_refused(loss, smallest_px):
    def read(patch_px):
        # A scale that divides every side.
        settings = [f"losses.{loss}", f"dataset.hr_patch_px={patch_px}", "scale=1", "dataset.lr=lr"]
        return load_options(PSNR, [Override.parse(setting) for setting in settings])

    assert read(smallest_px).dataset.hr_patch_px == smallest_px
    with pytest.raises(UserError, match=rf"hr_patch_px is {smallest_px - 1}; with losses\.\w+ .* {smallest_px}$"):
        read(smallest_px - 1)


def test_bicubic_lr_is_refused_where_it_would_be_hr_itself():
    settings = [Override.parse("dataset.lr=null"), Override.parse("scale=1")]
    with pytest.raises(UserError, match=r"dataset\.lr is null, but bicubic LR of scale 1 is HR itself; give [^\n]*$"):
        load_options(BASE, settings)


def test_without_lr_several_folders_of_hr_are_accepted():
    options = load_options(BASE, [Override.parse("dataset.lr=null"), Override.parse("dataset.hr={a: 1, b: 0.5}")])
    assert options.degradation is None


@pytest.mark.parametrize("value", ["true", "false"])
def test_former_form_of_augment_is_refused_with_the_new_one(value):
    with pytest.raises(
        UserError, match=r"dataset\.augment is .*\[flip, rotate\], which true was.*\[\], which false was"
    ):
        load_options(BASE, [Override.parse(f"dataset.augment={value}")])


def test_loss_that_is_null_by_default_is_given_by_its_weight_alone():
    options = load_options(BASE, [Override.parse("losses.artifact.weight=1"), Override.parse("train.ema_decay=0.999")])
    assert options.losses.artifact.weight == 1
