"""Networks and the training step built from options: published sizes, seeds, support checks, compilation."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager
from torch.nn import functional as F

from benchmarks.random_step import random_recipe, random_step
from sed_sr.models.build import (
    build_discriminator,
    build_extractor,
    build_generator,
    build_image_losses,
    build_schedule,
    build_train_step,
    records_graphs,
)
from sed_sr.models.generator import Generator
from sed_sr.models.losses.dists import DISTSLoss
from sed_sr.models.losses.focal_frequency import focal_frequency_loss
from sed_sr.models.losses.lpips import LPIPSDistance
from sed_sr.models.losses.ms_ssim import ms_ssim_loss
from sed_sr.options.errors import UserError
from sed_sr.options.recipe import Override, load_options

RECIPES = Path(__file__).parents[2] / "options"


def read(recipe: str, **settings):
    overrides = [Override(key.replace("__", "."), value, key) for key, value in settings.items()]
    return load_options(RECIPES / f"{recipe}.yml", overrides)


def build_step(options, generator=None):
    generator = build_generator(options) if generator is None else generator
    cpu = torch.device("cpu")
    return build_train_step(options, generator=generator, device=cpu, extractor_state=None, loss_states={})


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
        ("train_rrdb_ESRGAN", "VGGDiscriminator", False),
        ("train_swinir_LDL", "VGGDiscriminator", False),
    ],
)
def test_discriminator_depends_on_its_options_and_not_on_the_name_of_the_run(recipe, kind, semantic):
    options = read(recipe, name="UNet_SeD_patch", semantic_extractor__weights="random")
    discriminator = build_discriminator(options, build_extractor(options, None))
    assert type(discriminator).__name__ == kind
    assert any("fusion" in name for name, _ in discriminator.named_parameters()) == semantic


def test_vgg_discriminator_is_built_for_the_patches_of_the_options():
    for patch_px in (128, 256):
        discriminator = build_discriminator(read("train_rrdb_LDL", dataset__hr_patch_px=patch_px), None)
        assert discriminator(torch.rand(1, 3, patch_px, patch_px)).shape == (1, 1)


@pytest.mark.parametrize("fusion", ["cross-attention", "concatenation"])
@pytest.mark.parametrize("layer", ["layer2", "32"])
def test_discriminator_fits_any_extractor(layer, fusion):
    """Semantic features with other channels and strides 8 and 32."""
    options = read(
        "train_rrdb_U+SeD",
        discriminator__features=8,
        discriminator__fusion=fusion,
        semantic_extractor__weights="random",
        semantic_extractor__layer=layer,
    )
    extractor = build_extractor(options, None)
    discriminator = build_discriminator(options, extractor)
    hr = torch.rand(1, 3, 64, 64)
    assert discriminator(hr, extractor(hr)).shape == (1, 1, 64, 64)
    assert any("attention" in name for name, _ in discriminator.named_parameters()) == (fusion == "cross-attention")
    assert discriminator.fusion1.shuffle.upscale_factor == extractor.stride / 2  # image features of stride 2


@pytest.mark.parametrize(
    ("recipe", "expected"), [("train_rrdb_psnr_real", {"pixel", "perceptual"}), ("train_rrdb_psnr", set())]
)
def test_losses_of_real_sr_compare_with_sharpened_hr(recipe, expected):
    options = read(recipe, generator__blocks=1, generator__features=8)
    step = build_step(options)
    assert set(step.sharpened) == expected


def test_each_option_of_the_losses_builds_its_formula():
    """With the numbers of the options, on images whose losses all differ."""
    sections = {"ms_ssim": {}, "focal_frequency": {"alpha": 0.5}, "lpips": {"net": "alex"}, "dists": {}}
    options = read("train_rrdb_psnr", **{f"losses__{name}": numbers for name, numbers in sections.items()})
    sr, hr = torch.rand(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = {
        "pixel": F.l1_loss,
        "ms_ssim": ms_ssim_loss,
        "focal_frequency": partial(focal_frequency_loss, alpha=0.5),
        "lpips": LPIPSDistance("alex"),
        "dists": DISTSLoss(),
    }
    losses = build_image_losses(options, {})
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss(sr, hr), expected[name](sr, hr), msg=name)


ALL_LOSSES = {"ms_ssim", "dists", "lpips", "focal_frequency", "feature_matching", "r1"}


@pytest.mark.parametrize(("recipe", "precision"), [("train_rrdb_P+SeD", "bf16"), ("train_rrdb_U_real", "fp32")])
def test_all_losses_together_train_and_are_finite(recipe, precision):
    """Every term is logged under its name, and each of the generator's has a share in its gradient."""
    options = random_recipe(
        f"options/{recipe}.yml",
        *(Override(f"losses.{name}", {}, name) for name in ALL_LOSSES),
        train__precision=precision,
        generator__blocks=1,
        generator__features=8,
        discriminator__features=8,
        dataset__hr_patch_px=64,
        dataloader__batch_size=2,
    )
    step, batch = random_step(options, torch.device("cpu"))
    before = [[p.clone() for p in network.parameters()] for network in (step.generator, step.discriminator)]
    for number in range(3):
        outcome = step(batch, watch=number == 1)
        assert not outcome.broken
        assert {*ALL_LOSSES, "pixel", "perceptual", "gan", "d_loss"} <= outcome.terms.keys()
        assert all(math.isfinite(value) for value in outcome.terms.values())
        if number == 1:
            shares = {name: value for name, value in outcome.terms.items() if name.startswith("share_")}
            assert shares.keys() == {f"share_{name}" for name in step.weights}
            assert all(shares.values())
            assert sum(shares.values()) == pytest.approx(1)
    for old, network in zip(before, (step.generator, step.discriminator), strict=True):
        assert any(not torch.equal(a, b) for a, b in zip(old, network.parameters(), strict=True))
    assert {"DISTSLoss", "LPIPSDistance"} <= {type(network).__name__ for network in step.frozen_networks}


SMALL = {
    "generator": {"type": "rrdb", "features": 8, "blocks": 1, "growth": 4},
    "discriminator__features": 8,
    "semantic_extractor__weights": "random",
    "losses__perceptual__weights": "random",
}


COMPILED = {
    "train_rrdb_P+SeD": {"generator__blocks": 3, "generator__features": 8, "generator__growth": 4},
    "train_swinir_U+SeD": {"generator__embed_dim": 12, "generator__depths": (2, 2), "generator__heads": (2, 2)},
}


@pytest.mark.parametrize("recipe", COMPILED)
def test_compiled_step_equals_the_step_and_compiles_each_kind_of_block_once(recipe, monkeypatch):
    """With a compiler that traces forward and backward as the real one does, but generates no code."""
    compile_module, inputs_of_graphs = torch.nn.Module.compile, []

    def compiler(graph, inputs):
        inputs_of_graphs.extend(inputs)
        return aot_eager(graph, inputs)

    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module, **named: compile_module(module, backend=compiler, **named)
    )
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    small = {"discriminator__features": 8, "dataset__hr_patch_px": 64, "dataloader__batch_size": 2}
    terms = []
    for compiled in (False, True):
        overrides = {**small, **COMPILED[recipe], "train__compile": compiled}
        options = random_recipe(f"{RECIPES / recipe}.yml", **overrides)
        torch.manual_seed(0)
        step, batch = random_step(options, torch.device("cpu"))
        outcomes = []
        for number in range(4):  # the third one is watched: its graph is kept for several backward passes
            torch.manual_seed(number)
            outcomes.append(step(batch, watch=number == 2).terms)
        terms.append(outcomes)
    for plain, same in zip(*terms, strict=True):
        assert same == pytest.approx(plain, rel=1e-4, abs=1e-5)
    kinds_of_blocks = 2 if "swinir" in recipe else 1  # with and without shifted windows
    batches_of_the_discriminator = 2  # frozen, fake only; trained, real and fake
    counted = torch._dynamo.utils.counters
    assert counted["stats"]["unique_graphs"] == kinds_of_blocks + batches_of_the_discriminator
    assert not counted["graph_break"]
    assert not any(isinstance(value, torch.SymInt) for value in inputs_of_graphs)  # all shapes are static


@pytest.mark.parametrize("asked", [False, True])
def test_gradient_checkpointing_follows_the_options(asked):
    options = read("train_rrdb_P+SeD", **SMALL, train__gradient_checkpointing=asked)
    generator = build_generator(options)
    build_step(options, generator)
    assert generator.checkpointing == asked


def test_unsupported_options_raise():
    options = read("train_rrdb_P+SeD", **SMALL, train__gradient_checkpointing=True)
    with pytest.raises(UserError, match=r"train\.gradient_checkpointing is true, but Generator does not support it"):
        build_step(options, Generator())
    options = read("train_rrdb_P+SeD", **SMALL, train__cuda_graph=True)
    with pytest.raises(UserError, match=r"train\.cuda_graph is true, which needs a GPU"):
        build_step(options)
    options, limited = read("train_rrdb_P+SeD", **SMALL, train__precision="bf16"), Generator()
    limited.precisions = ("fp32", "tf32")
    with pytest.raises(UserError, match=r"train\.precision is bf16, which Generator does not support; use fp32"):
        build_step(options, limited)
    for precision in ("fp16", "tf32"):
        options = read("train_rrdb_P+SeD", **SMALL, train__precision=precision)
        with pytest.raises(UserError, match=f"train.precision is {precision}, which needs a GPU"):
            build_step(options)


def test_cuda_graphs_are_used_on_a_gpu_by_default():
    on = {
        chosen: [
            records_graphs(read("train_rrdb_psnr", train__cuda_graph=chosen), torch.device(kind))
            for kind in ("cpu", "cuda")
        ]
        for chosen in ("auto", False, True)
    }
    assert on == {"auto": [False, True], False: [False, False], True: [True, True]}


def test_weights_depend_on_the_seed_only():
    small = {"generator__blocks": 1, "generator__features": 8}
    torch.manual_seed(5)
    first = build_generator(read("train_rrdb_psnr", **small)).state_dict()
    torch.manual_seed(6)
    again = build_generator(read("train_rrdb_psnr", **small)).state_dict()
    other = build_generator(read("train_rrdb_psnr", seed=2, **small)).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv_first.weight"], other["conv_first.weight"])


def test_schedule_and_clipping_follow_the_options():
    milestones = {"optimizer__milestones": (50, 80), "train__total_steps": 100}
    stepwise = build_schedule(read("train_rrdb_psnr", **milestones))
    assert [stepwise(step) for step in (0, 49, 50, 80)] == [1, 1, 0.5, 0.25]
    cosine = build_schedule(read("train_rrdb_psnr", optimizer__schedule="cosine", **milestones))
    assert [cosine(step) for step in (0, 50, 100)] == pytest.approx([1, 0.5, 0])
    rising = build_schedule(read("train_rrdb_psnr", optimizer__warmup_steps=9, **milestones))
    assert [rising(step) for step in (0, 4, 9, 50)] == pytest.approx([0.1, 0.5, 1, 0.5])

    options = read("train_rrdb_psnr", generator__blocks=1, generator__features=8, optimizer__clip_grad_norm=0.5)
    step = build_step(options)
    assert step.clip_grad_norm == 0.5
