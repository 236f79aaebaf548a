"""Pretrained weights of a run: which files the options need, and errors in them."""

from pathlib import Path

import pytest
import torch

from sed_sr.models.build import build_extractor
from sed_sr.options.errors import UserError
from sed_sr.options.recipe import Override, load_options
from sed_sr.utils.training.frozen_weights import FrozenStates, load_frozen_states, pretrained_weights

RECIPES = Path(__file__).parents[3] / "options"


def read(recipe: str, **settings):
    overrides = [Override(key.replace("__", "."), value, key) for key, value in settings.items()]
    return load_options(RECIPES / f"{recipe}.yml", overrides)


@pytest.mark.parametrize(
    ("recipe", "wanted"),
    [
        ("train_rrdb_psnr", []),
        ("train_rrdb_P", ["vgg19-dcbb9e9d.pth"]),
        ("train_swinir_U+SeD", ["RN50.pt", "vgg19-dcbb9e9d.pth"]),
        ("train_swinir_U_real", ["vgg19-dcbb9e9d.pth"]),
    ],
)
def test_only_the_weights_that_a_recipe_needs_are_listed(recipe, wanted):
    assert list(pretrained_weights(read(recipe)).values()) == wanted


def test_nothing_is_read_for_psnr_training_and_random_weights():
    assert load_frozen_states(read("train_rrdb_psnr")) == FrozenStates()
    random = {"semantic_extractor__weights": "random", "losses__perceptual__weights": "random"}
    assert load_frozen_states(read("train_rrdb_P+SeD", **random)) == FrozenStates()


def test_wrong_weight_file_raises_with_the_name_of_the_model(tmp_path):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "clip.pt")
    settings = {"semantic_extractor__weights": str(tmp_path / "clip.pt"), "losses__perceptual__weights": "random"}
    options = read("train_rrdb_P+SeD", **settings)
    with pytest.raises(UserError, match="clip/RN50"):
        build_extractor(options, load_frozen_states(options).extractor)
