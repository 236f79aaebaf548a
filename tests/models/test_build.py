"""From options to modules: the published networks, their seeds, and what is pretrained."""

from pathlib import Path

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager

from benchmarks.random_step import random_recipe, random_step
from sed_sr.models.build import (
    build_discriminator,
    build_extractor,
    build_generator,
    build_schedule,
    build_train_step,
    load_generator,
    pretrained_weights,
    records_graphs,
)
from sed_sr.models.rrdb import RRDBNet
from sed_sr.models.swinir import SwinIR
from sed_sr.options.errors import UserError
from sed_sr.options.recipe import Override, load_options
from sed_sr.utils.runtime.memory import peak_bytes
from sed_sr.utils.weights.generator_file import open_generator_file

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
    options = read(recipe, name="UNet_SeD_patch", semantic_extractor__weights="random")
    discriminator = build_discriminator(options, build_extractor(options))
    assert type(discriminator).__name__ == kind
    assert any("fusion" in name for name, _ in discriminator.named_parameters()) == semantic


@pytest.mark.parametrize("fusion", ["cross-attention", "concatenation"])
@pytest.mark.parametrize("layer", ["layer2", "32"])
def test_discriminator_fits_whatever_the_extractor_gives(layer, fusion):
    """Semantics of other channels on another grid: strides 8 and 32."""
    options = read(
        "train_rrdb_U+SeD",
        discriminator__features=8,
        discriminator__fusion=fusion,
        semantic_extractor__weights="random",
        semantic_extractor__layer=layer,
    )
    extractor = build_extractor(options)
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
    step = build_train_step(options, generator=build_generator(options), device=torch.device("cpu"))
    assert set(step.sharpened) == expected


SMALL = {
    "generator": {"type": "rrdb", "features": 8, "blocks": 1, "growth": 4},
    "discriminator__features": 8,
    "semantic_extractor__weights": "random",
    "losses__perceptual__vgg_weights": "random",
}


COMPILED = {
    "train_rrdb_P+SeD": {"generator__blocks": 3, "generator__features": 8, "generator__growth": 4},
    "train_rrdb_U": {"generator__blocks": 3, "generator__features": 8, "generator__growth": 4},
    "train_swinir_P_real": {"generator__embed_dim": 12, "generator__depths": (2, 2), "generator__heads": (2, 2)},
    "train_swinir_U+SeD": {"generator__embed_dim": 12, "generator__depths": (2, 2), "generator__heads": (2, 2)},
}


@pytest.mark.parametrize("recipe", COMPILED)
def test_compiled_step_is_the_step_and_compiles_each_kind_of_block_once(recipe, monkeypatch):
    """By a compiler that traces forward and backward as the real one does, and leaves the machine code out."""
    compile_module, inputs_of_graphs = torch.nn.Module.compile, []

    def compiler(graph, inputs):
        inputs_of_graphs.extend(inputs)
        return aot_eager(graph, inputs)

    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module, **named: compile_module(module, backend=compiler, **named)
    )
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    small = {"discriminator__features": 8, "dataset__lr_patch_px": 16, "dataloader__batch_size": 2}
    terms = []
    for compiled in (False, True):
        overrides = {**small, **COMPILED[recipe], "train__compile": compiled}
        options = random_recipe(f"{RECIPES / recipe}.yml", **overrides)
        torch.manual_seed(0)
        step, batch = random_step(options, torch.device("cpu"))
        outcomes = []
        for number in range(4):  # the third one is watched, for which the graph is kept over several backward passes
            torch.manual_seed(number)
            outcomes.append(step(batch, watch=number == 2).terms)
        terms.append(outcomes)
    for plain, same in zip(*terms, strict=True):
        assert same == pytest.approx(plain, rel=1e-4, abs=1e-5)
    kinds_of_blocks = 2 if "swinir" in recipe else 1  # windows that are shifted, and that are not
    batches_of_the_discriminator = 2  # fake alone, frozen; real and fake, trained
    counted = torch._dynamo.utils.counters
    assert counted["stats"]["unique_graphs"] == kinds_of_blocks + batches_of_the_discriminator
    assert not counted["graph_break"]
    assert not any(isinstance(value, torch.SymInt) for value in inputs_of_graphs)  # each for one size of batch


@pytest.mark.parametrize("asked", [False, True])
def test_generator_recomputes_its_blocks_when_asked(asked):
    options = read("train_rrdb_P+SeD", **SMALL, train__gradient_checkpointing=asked)
    generator = build_generator(options)
    build_train_step(options, generator=generator, device=torch.device("cpu"))
    assert generator.checkpointing == asked


def test_what_the_generator_or_the_device_cannot_do_is_refused():
    options = read("train_rrdb_P+SeD", **SMALL, train__gradient_checkpointing=True)
    with pytest.raises(UserError, match=r"train\.gradient_checkpointing is true, but Conv2d cannot do it"):
        build_train_step(options, generator=torch.nn.Conv2d(3, 3, 1), device=torch.device("cpu"))
    options = read("train_rrdb_P+SeD", **SMALL, train__cuda_graph=True)
    with pytest.raises(UserError, match=r"train\.cuda_graph is true, which needs a GPU"):
        build_train_step(options, generator=build_generator(options), device=torch.device("cpu"))
    for precision in ("fp16", "tf32"):
        options = read("train_rrdb_P+SeD", **SMALL, train__precision=precision)
        with pytest.raises(UserError, match=f"train.precision is {precision}, which needs a GPU"):
            build_train_step(options, generator=build_generator(options), device=torch.device("cpu"))


def test_steps_are_recorded_on_a_gpu_unless_told_otherwise():
    on = {
        chosen: [
            records_graphs(read("train_rrdb_psnr", train__cuda_graph=chosen), torch.device(kind))
            for kind in ("cpu", "cuda")
        ]
        for chosen in ("auto", False, True)
    }
    assert on == {"auto": [False, True], False: [False, False], True: [True, True]}


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
        ("train_swinir_U_real", ["vgg19-dcbb9e9d.pth"]),
    ],
)
def test_only_what_a_recipe_needs_is_fetched(recipe, wanted):
    assert list(pretrained_weights(read(recipe)).values()) == wanted


def test_wrong_pretrained_file_is_refused_with_its_name(tmp_path):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "clip.pt")
    options = read("train_rrdb_P+SeD", semantic_extractor__weights=str(tmp_path / "clip.pt"), generator__blocks=1)
    with pytest.raises(UserError, match="clip/RN50"):
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


@pytest.fixture
def read_back(tmp_path):
    """What a file with these tensors, and this record, is taken for."""

    def read_back_(state, **record):
        torch.save({"params": state, **record}, tmp_path / "net.pth")
        return open_generator_file(tmp_path / "net.pth")

    return read_back_


def image_of(network):
    with torch.inference_mode():
        return network.eval()(torch.rand(1, 3, 9, 7, generator=torch.Generator().manual_seed(0)))


def test_generator_of_a_file_needs_no_options_and_must_fit_those_that_are_given(read_back):
    network = SwinIR(embed_dim=12, depths=(1, 2), heads=(2, 3), window=4, mlp_ratio=2.3)
    file = read_back(network.state_dict())
    assert torch.equal(image_of(load_generator(file)), image_of(network))
    given = {"type": "swinir", "embed_dim": 12, "depths": [1, 2], "heads": [2, 3], "window": 4, "mlp_ratio": 2.3}
    assert torch.equal(image_of(load_generator(file, given)), image_of(network))
    with pytest.raises(UserError, match=r"with window 4 where the options ask for 8$"):
        load_generator(file, {**given, "window": 8})
    with pytest.raises(UserError, match=r"but the options ask for RRDB$"):
        load_generator(file, {"type": "rrdb"})


def small_swinir(**shapes):
    state = SwinIR(embed_dim=1, depths=(2,), heads=(1,), window=2, mlp_ratio=1.0).state_dict()
    return state | {name.replace("__", "."): torch.zeros(shape) for name, shape in shapes.items()}


def with_windows_of(px):
    state = small_swinir()
    tables = [name for name in state if name.endswith("relative_position_bias_table")]
    return state | {name: torch.zeros((2 * px - 1) ** 2, 1) for name in tables}


def record_of(generator):
    return {"options": {"name": "run", "generator": generator}, "step": 1}


@pytest.mark.parametrize(
    ("state", "record", "message"),
    [
        (lambda: RRDBNet(blocks=1).state_dict() | {"conv_first.weight": torch.zeros(90_000, 3, 1, 1)}, {}, "not fit"),
        (lambda: small_swinir(conv_first__weight=(10**9, 3, 0, 0)), {}, "not fit|larger than any memory"),
        (lambda: small_swinir(conv_first__weight=(2**62, 3, 0, 0)), {}, "larger than any memory"),
        (lambda: with_windows_of(160), {}, r"masks would take [\d.]+ GB"),
        (small_swinir, record_of({"type": "swinir", "mlp_ratio": 1.5}), "with mlp_ratio 1.0 where the options ask"),
        (lambda: {"weight": torch.ones(3)}, record_of({"type": "rrdb", "blocks": 10**12}), "unknown architecture"),
    ],
)
def test_sizes_that_would_take_all_memory_are_refused_before_anything_is_allocated(state, record, message, read_back):
    file = read_back(state(), **record)
    before_bytes = peak_bytes(torch.device("cpu"))
    with pytest.raises(UserError, match=message) as caught:
        load_generator(file)
    assert "net.pth" in str(caught.value)
    assert peak_bytes(torch.device("cpu")) - before_bytes < 100e6
