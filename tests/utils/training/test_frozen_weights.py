"""Pretrained weights of a run: which files the options need, and errors in them."""

from pathlib import Path

import pytest
import torch
from torchvision.models.vgg import cfgs, make_layers

from sed_sr.models.build import build_extractor, build_image_losses
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


LOSSES = {"losses__dists": {}, "losses__lpips": {}}
DISTS = ["vgg16-397923af.pth", "DISTS_weights-f5e65c96.pth"]


def test_weights_of_lpips_and_dists_are_read_from_their_files(tmp_path, monkeypatch):
    """Files with random weights, in place of the published ones."""
    monkeypatch.setattr("sed_sr.utils.weights.pretrained.verify", lambda path: True)
    monkeypatch.setattr("sed_sr.utils.training.frozen_weights.verify", lambda path: True)
    backbone = {f"features.{name}": value for name, value in make_layers(cfgs["D"]).state_dict().items()}
    calibration = {name: torch.rand(1, 1475, 1, 1) for name in ("alpha", "beta")}
    for file, state in zip(DISTS, (backbone, calibration), strict=True):
        torch.save(state, tmp_path / file)
    options = read("train_rrdb_psnr", paths__pretrained_root=str(tmp_path), **LOSSES)
    assert sorted(pretrained_weights(options).values()) == sorted([*DISTS, DISTS[0]])
    losses = build_image_losses(options, load_frozen_states(options).losses)
    assert torch.equal(losses["dists"].alpha, calibration["alpha"])
    for network in (losses["dists"].features, losses["lpips"].features.slice1):
        assert torch.equal(network[0].weight, backbone["features.0.weight"])


@pytest.mark.parametrize(("loss", "file"), [("dists", DISTS[0]), ("lpips", DISTS[0]), ("lpips_alex", "alexnet")])
def test_missing_weights_of_losses_are_one_sentence(loss, file, tmp_path, monkeypatch):
    monkeypatch.setenv("SED_OFFLINE", "1")
    loss, _, net = loss.partition("_")
    more = {f"losses__{loss}": {"net": net} if net else {}}
    options = read("train_rrdb_psnr", paths__pretrained_root=str(tmp_path), **more)
    with pytest.raises(UserError, match=rf"{file}.* SED_OFFLINE forbids downloads"):
        load_frozen_states(options)


def test_nothing_is_read_for_psnr_training_and_random_weights():
    assert load_frozen_states(read("train_rrdb_psnr")) == FrozenStates()
    random = {"semantic_extractor__weights": "random", "losses__perceptual__weights": "random"}
    random |= {f"{loss}__weights": "random" for loss in LOSSES}
    assert load_frozen_states(read("train_rrdb_P+SeD", **random)) == FrozenStates()


def test_wrong_weight_file_raises_with_the_name_of_the_model(tmp_path):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "clip.pt")
    settings = {"semantic_extractor__weights": str(tmp_path / "clip.pt"), "losses__perceptual__weights": "random"}
    options = read("train_rrdb_P+SeD", **settings)
    with pytest.raises(UserError, match="clip/RN50"):
        build_extractor(options, load_frozen_states(options).extractor)
