"""From options to modules: the published networks, their seeds, and what is pretrained."""

from pathlib import Path

import pytest
import torch

from models.build import (
    build_discriminator,
    build_generator,
    build_schedule,
    build_train_step,
    pretrained_weights,
)
from options.schema import Override, load_options
from utils.errors import UserError

RECIPES = Path(__file__).parents[2] / "options"


def read(recipe: str, **settings):
    overrides = [Override(key.replace("__", "."), value, key) for key, value in settings.items()]
    return load_options(RECIPES / f"{recipe}.yml", overrides)


@pytest.mark.parametrize(("recipe", "millions"), [("train_rrdb_P+SeD", 16.70), ("train_swinir_U", 11.90)])
def test_recipes_build_the_published_generators(recipe, millions):
    generator = build_generator(read(recipe))
    assert sum(p.numel() for p in generator.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize(
    ("recipe", "kind", "semantic"),
    [
        ("train_rrdb_P", "PatchDiscriminator", False),
        ("train_rrdb_P+SeD", "PatchDiscriminator", True),
        ("train_swinir_U", "UNetDiscriminator", False),
        ("train_swinir_U+SeD", "UNetDiscriminator", True),
    ],
)
def test_discriminator_follows_its_key_and_never_the_runs_name(recipe, kind, semantic):
    discriminator = build_discriminator(read(recipe, name="UNet_SeD_patch"))
    assert type(discriminator).__name__ == kind
    assert any("fusion" in name for name, _ in discriminator.named_parameters()) == semantic


def test_weights_depend_on_the_seed_alone():
    small = {"generator__blocks": 1, "generator__features": 8}
    torch.manual_seed(5)
    first = build_generator(read("train_rrdb_psnr", **small)).state_dict()
    torch.manual_seed(6)
    again = build_generator(read("train_rrdb_psnr", **small)).state_dict()
    other = build_generator(read("train_rrdb_psnr", seed=2, **small)).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv_first.weight"], other["conv_first.weight"])


@pytest.mark.parametrize(
    ("recipe", "wanted"),
    [
        ("train_rrdb_psnr", []),
        ("train_rrdb_P", ["vgg19-dcbb9e9d.pth"]),
        ("train_swinir_U+SeD", ["RN50.pt", "vgg19-dcbb9e9d.pth"]),
    ],
)
def test_only_what_a_recipe_needs_is_fetched(recipe, wanted):
    assert list(pretrained_weights(read(recipe)).values()) == wanted


def test_wrong_pretrained_file_is_refused_with_its_name(tmp_path):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "clip.pt")
    options = read("train_rrdb_P+SeD", semantic_extractor__weights=str(tmp_path / "clip.pt"), generator__blocks=1)
    with pytest.raises(UserError, match=r"clip\.pt|CLIP RN50"):
        build_train_step(options, generator=build_generator(options), device=torch.device("cpu"))


def test_schedule_and_clipping_follow_the_options():
    milestones = {"optimizer__milestones": (50, 80), "train__total_steps": 100}
    stepwise = build_schedule(read("train_rrdb_psnr", **milestones))
    assert [stepwise(step) for step in (0, 49, 50, 80)] == [1, 1, 0.5, 0.25]
    cosine = build_schedule(read("train_rrdb_psnr", optimizer__schedule="cosine", **milestones))
    assert [cosine(step) for step in (0, 50, 100)] == pytest.approx([1, 0.5, 0])
    rising = build_schedule(read("train_rrdb_psnr", optimizer__warmup_steps=9, **milestones))
    assert [rising(step) for step in (0, 4, 9, 50)] == pytest.approx([0.1, 0.5, 1, 0.5])

    options = read("train_rrdb_psnr", generator__blocks=1, generator__features=8, optimizer__clip_grad_norm=0.5)
    step = build_train_step(options, generator=build_generator(options), device=torch.device("cpu"))
    assert step.clip_grad_norm == 0.5
