"""A wrong value gets one sentence: the place, the value, what is allowed."""

import pytest

from sed_sr.options.errors import UserError
from sed_sr.options.recipe import Override, load_options

BASE = {"name": "run", "generator": {"type": "rrdb"}, "discriminator": {"type": "patch"}}
MISTAKES = {
    "train.total_stepz=3": ["train.total_stepz", "did you mean total_steps?"],
    "trian.total_steps=3": ["trian", "did you mean train?"],
    "train.total_steps=many": ["train.total_steps", "'many'", "integer"],
    "train.total_steps=true": ["train.total_steps", "true", "integer"],
    "train.total_steps=2.5": ["train.total_steps", "2.5", "integer"],
    "train.total_steps=0": ["train.total_steps", "0", "greater than or equal to 1"],
    "train=5": ["train", "5", "expected keys and values"],
    "scale=5": ["scale is 5; it should be 1, 2, 3, 4 or 8"],
    "scale=true": ["scale is true", "integer"],
    "generator.type=swinirr": ["generator.type", "did you mean swinir?", "allowed: rrdb, swinir"],
    "generator.window=8": ["generator.window", "not an option", "features, blocks, growth"],
    "discriminator.type=patchgan": ["discriminator.type", "'patchgan'", "allowed: patch, unet"],
    "discriminator.semantic=true": ["discriminator.semantic", "not an option", "fusion"],
    "semantic_extractor.layer=[1]": ["semantic_extractor.layer", "string"],
    "name=../elsewhere": ["name", "'../elsewhere'", "letters, digits"],
    "losses.perceptual.layers={}": ["losses.perceptual.layers", "at least 1 item"],
    "losses.pixel.weight=.nan": ["losses.pixel.weight", "finite"],
    "optimizer.betas=[0.9]": ["optimizer.betas", "[0.9]"],
    "paths.data_root=3": ["paths.data_root", "3", "path"],
    "logging=wandb": ["logging is 'wandb'; it should be a list, as in [wandb]"],
    "logging=null": ["logging is null; it should be a list"],
    "logging=[wandbb]": ["logging.0 is 'wandbb' (did you mean wandb?); allowed: tensorboard, wandb"],
    "validation.benchmarks=Set5": ["validation.benchmarks", "'Set5'", "list"],
    "validation.metrics=psnr": ["validation.metrics", "'psnr'", "list"],
    "dataset.hr={}": ["dataset.hr", "at least 1 item"],
    "dataset.hr={a: 0}": ["dataset.hr.a", "0", "greater than 0"],
    "dataset.hr={a: 101}": ["dataset.hr.a", "101", "less than or equal to 100"],
    "dataloader.batch_size=many": [
        "dataloader.batch_size is 'many'; it should be a whole number above 0, auto or null"
    ],
    "dataloader.num_workers=-1": ["dataloader.num_workers is -1; it should be a whole number or auto"],
    "dataloader.num_workers=null": ["dataloader.num_workers is null; it should be a whole number or auto"],
    "train.cuda_graph=yes please": ["train.cuda_graph is 'yes please'; it should be true, false or auto"],
    "train.compile=reduce-overhead": [
        "train.compile is 'reduce-overhead'; it should be true or false; CUDA graphs have their own option, "
        "train.cuda_graph"
    ],
}


@pytest.mark.parametrize(("setting", "fragments"), MISTAKES.items(), ids=MISTAKES)
def test_mistake_gets_one_sentence_with_the_place_the_value_and_what_is_allowed(setting, fragments):
    with pytest.raises(UserError) as caught:
        load_options(BASE, [Override.parse(setting)])
    sentence = str(caught.value)
    assert sentence.startswith(f"--set {setting}: ")
    assert "\n" not in sentence
    for fragment in fragments:
        assert fragment in sentence


def test_every_missing_key_of_a_section_is_reported():
    with pytest.raises(UserError) as caught:
        load_options({**BASE, "degradation": {}})
    lines = str(caught.value).splitlines()
    assert lines[0] == "degradation.hr_px is required and was not given"
    assert len(lines) == 7


@pytest.mark.parametrize(("given", "value"), [("3", 3), ("3.0", 3), ("0", 0), ("auto", "auto")])
def test_value_that_may_be_auto_is_accepted(given, value):
    assert load_options(BASE, [Override.parse(f"dataloader.num_workers={given}")]).dataloader.num_workers == value
