import re
from pathlib import Path

import pytest
import safetensors.torch
import spandrel
import torch
from torch import nn

from sed_sr.models.rrdb import RRDBNet
from sed_sr.models.spandrel_generator import SpandrelGenerator
from sed_sr.models.swinir import SwinIR
from sed_sr.options.errors import UserError
from sed_sr.utils.weights.checkpoint import load, save_generator, save_state
from sed_sr.utils.weights.formats import GeneratorWeights, load_into
from sed_sr.utils.weights.formats import generator_weights as recognise

FEATURES, BLOCKS, GROWTH = 4, 11, 32  # block numbers of two digits; spandrel supports no other growth


def generator_weights(path: Path) -> GeneratorWeights:
    return recognise(load(path), path)


def layer_names():
    """The names of an RRDB's layers in SeD, BasicSR and old ESRGAN files."""
    yield "conv_first", "conv_first", "model.0"
    for i in range(BLOCKS):
        for j in range(1, 4):
            for k in range(1, 6):
                yield (
                    f"RRDB_trunk.{i}.RDB{j}.conv{k}",
                    f"body.{i}.rdb{j}.conv{k}",
                    f"model.1.sub.{i}.RDB{j}.conv{k}.0",
                )
    yield "trunk_conv", "conv_body", f"model.1.sub.{BLOCKS}"
    yield "upconv1", "conv_up1", "model.3"
    yield "upconv2", "conv_up2", "model.6"
    yield "HRconv", "conv_hr", "model.8"
    yield "conv_last", "conv_last", "model.10"


STYLES = ("SeD", "BasicSR", "old ESRGAN")
WRAPS = {
    "params_ema": lambda state: {"params": broken(state), "params_ema": state},
    "params": lambda state: {"params": state},
    "model": lambda state: {"model": state, "epoch": 3},
    "state_dict": lambda state: {"state_dict": state},
    "model_state_dict": lambda state: {"model_state_dict": state},
    "bare": lambda state: state,
    "module": lambda state: {"params": {f"module.{name}": value for name, value in state.items()}},
    "netG": lambda state: {
        "state_dict": {f"netG.{name}": value for name, value in state.items()} | {"netD.conv0.weight": torch.ones(1)}
    },
}


def broken(state):
    return {name: value + 1 for name, value in state.items()}


def foreign_state(style, *, seed=0):
    """Random weights of a small RRDB with the names of `style`."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: value.shape for name, value in small_rrdb().state_dict().items()}
    state = {}
    for names in layer_names():
        for parameter in ("weight", "bias"):
            shape = shapes[f"{names[0]}.{parameter}"]
            state[f"{names[STYLES.index(style)]}.{parameter}"] = 0.1 * torch.randn(shape, generator=generator)
    return state


def small_rrdb(blocks=BLOCKS):
    return RRDBNet(features=FEATURES, blocks=blocks, growth=GROWTH)


def small_swinir(**changes):
    return SwinIR(**{"window": 4, "depths": (2, 2), "embed_dim": 12, "heads": (2, 2), **changes})


def image_of(network):
    lr = torch.rand(1, 3, 8, 10, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return network.eval()(lr)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("wrap", WRAPS)
def test_every_wrapper_and_naming_gives_the_image_that_spandrel_gives(style, wrap, tmp_path):
    state = foreign_state(style)
    torch.save(WRAPS[wrap](state), tmp_path / "net.pth")
    weights = generator_weights(tmp_path / "net.pth")
    generator = small_rrdb()
    load_into(generator, weights, tmp_path / "net.pth")
    reference = spandrel.ModelLoader().load_from_state_dict(dict(state)).model
    torch.testing.assert_close(image_of(generator), image_of(reference))
    assert weights.kind.startswith(f"RRDB (11 blocks, 4 features, growth 32), x4, in {style} names, ")


def under(*prefixes):
    """Every key with all prefixes, as nested modules save it."""
    return lambda state: {"".join(prefixes) + name: value for name, value in state.items()}


def inside(part):
    """The first block is wrapped, so that the wrapper is in the middle of its keys."""

    def wrap(state):
        pattern = r"^(RRDB_trunk\.0\.|body\.0\.|model\.1\.sub\.0\.)"
        return {re.sub(pattern, rf"\1{part}.", name): value for name, value in state.items()}

    return wrap


def lightning(state):
    """A LightningModule of a GAN: the generator is one of its attributes."""
    beside = {"discriminator.conv0.weight": torch.ones(1), "loss.vgg.0.weight": torch.full((1,), float("nan"))}
    return {"epoch": 3, "state_dict": {**under("generator.")(state), **beside}}


WRAPPED = [
    (under("_orig_mod."), "'_orig_mod.'"),
    (under("module.", "_orig_mod."), "'module.', '_orig_mod.'"),
    (under("_orig_mod.", "module."), "'module.', '_orig_mod.'"),
    (under("net_g."), "'net_g.'"),
    (under("generator."), "'generator.'"),
    (under("model."), "'model.'"),
    (under("model.", "generator."), "'model.', 'generator.'"),
    (under("model.", "net_g.", "_orig_mod.", "module."), "'model.', 'net_g.', 'module.', '_orig_mod.'"),
    (inside("_orig_mod"), "'_orig_mod.'"),
    (
        inside("_fsdp_wrapped_module._checkpoint_wrapped_module"),
        "'_fsdp_wrapped_module.', '_checkpoint_wrapped_module.'",
    ),
    (lambda state: under("module.")(inside("_orig_mod")(state)), "'module.', '_orig_mod.'"),
    (lightning, "'generator.'"),
]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("wrap", "stripped"), WRAPPED)
def test_wrappers_are_stripped_in_any_order_and_named(style, wrap, stripped):
    state = foreign_state(style)
    weights, bare = recognise(wrap(state), "net.pth"), recognise(state, "net.pth")
    assert weights.state.keys() == bare.state.keys()
    assert all(torch.equal(weights.state[name], value) for name, value in bare.state.items())
    origin = "from 'state_dict'" if wrap is lightning else "as a bare state dict"
    assert (
        weights.kind
        == f"RRDB (11 blocks, 4 features, growth 32), x4, in {style} names, {origin}, stripped of {stripped}"
    )
    assert "stripped" not in bare.kind


def test_swinir_is_found_inside_a_larger_model():
    state = small_swinir().state_dict()
    weights = recognise({**under("generator.", "_orig_mod.")(state), "loss.weight": torch.ones(1)}, "net.pth")
    assert weights.state.keys() == state.keys()
    assert weights.kind.endswith("stripped of 'generator.', '_orig_mod.'")


def test_unknown_network_keeps_attributes_with_names_of_wrappers():
    own = {"model.conv.weight": torch.ones(1), "generator.weight": torch.ones(1), "tail.weight": torch.ones(1)}
    assert recognise(own, "net.pth").state.keys() == own.keys()
    assert recognise(under("module.", "_orig_mod.")(own), "net.pth").state.keys() == own.keys()


def test_unknown_keys_beside_an_unwrapped_network_are_kept():
    state = foreign_state("SeD") | {"generator.extra": torch.ones(1), "module.extra": torch.ones(1)}
    assert recognise(state, "net.pth").state.keys() == state.keys()


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (under("generator."), under("model."), r"net\.pth holds several networks, under 'generator\.' and 'model\.'"),
        (under("_orig_mod."), under(), "holds weights twice, with and without .*_orig_mod"),
    ],
)
def test_two_networks_in_one_state_dict_are_rejected(first, second, message):
    with pytest.raises(UserError, match=message):
        recognise(first(foreign_state("SeD")) | second(foreign_state("SeD", seed=1)), "net.pth")


def test_safetensors_are_detected_by_content(tmp_path):
    state = foreign_state("BasicSR")
    safetensors.torch.save_file(state, tmp_path / "net.pth")
    generator = small_rrdb()
    load_into(generator, generator_weights(tmp_path / "net.pth"), tmp_path / "net.pth")
    assert torch.equal(generator.trunk_conv.weight, state["conv_body.weight"])


def test_swinir_files_load_with_their_buffers(tmp_path):
    original, generator = small_swinir(), small_swinir()
    torch.save({"params": original.state_dict()}, tmp_path / "net.pth")
    weights = generator_weights(tmp_path / "net.pth")
    load_into(generator, weights, tmp_path / "net.pth")
    assert torch.equal(image_of(generator), image_of(original))
    sizes = "2 groups of 2 blocks, 12 features, 2 heads, window 4, MLP ratio 2, pixelshuffle"
    assert weights.kind == f"SwinIR ({sizes}), x4, from 'params'"


def test_half_precision_becomes_float32_and_buffers_keep_their_type(tmp_path):
    state = {name: value.half() for name, value in foreign_state("SeD").items()}
    torch.save({**state, "steps": torch.tensor(3)}, tmp_path / "net.pth")
    loaded = generator_weights(tmp_path / "net.pth").state
    assert {name: value.dtype for name, value in loaded.items() if value.dtype != torch.float32} == {
        "steps": torch.int64
    }
    assert torch.equal(loaded["conv_first.weight"], state["conv_first.weight"].float())


def test_running_average_is_preferred(tmp_path):
    params, params_ema = small_rrdb().state_dict(), small_rrdb().state_dict()
    options = {"name": "run", "lr": 1e-4, "milestones": [1, 2], "ema": None}
    about = {"options": options, "step": 7, "scale": 4, "scores": {"Set5": {"psnr": 30.5}}, "scored_step": 6}
    save_generator(tmp_path / "net.pth", params=params, params_ema=params_ema, **about)
    weights = generator_weights(tmp_path / "net.pth")
    assert all(torch.equal(weights.state[name], params_ema[name]) for name in params_ema)
    assert weights.kind.endswith("from 'params_ema'")
    chosen = recognise(load(tmp_path / "net.pth"), "net.pth", entry="params")
    assert all(torch.equal(chosen.state[name], params[name]) for name in params)
    written = load(tmp_path / "net.pth")
    assert {key: written[key] for key in about} == about


def test_missing_entry_is_reported_with_the_existing_ones(tmp_path):
    with pytest.raises(UserError, match=r"net\.pth has its weights under params, and none under params_ema"):
        recognise({"params": foreign_state("SeD")}, "net.pth", entry="params_ema")
    with pytest.raises(UserError, match="as a bare state dict, and none under params_ema"):
        recognise(foreign_state("SeD"), "net.pth", entry="params_ema")


def test_training_state_can_be_used_as_generator_weights(tmp_path):
    state = {"step": 12, "params": small_rrdb().state_dict(), "params_ema": foreign_state("SeD")}
    save_state(tmp_path / "state.pth", state)
    weights = generator_weights(tmp_path / "state.pth")
    assert torch.equal(weights.state["conv_first.weight"], state["params_ema"]["conv_first.weight"])
    save_state(tmp_path / "state.pth", {**state, "params_ema": None})
    assert generator_weights(tmp_path / "state.pth").kind.endswith("in SeD names, from 'params'")


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ([torch.ones(1)], "holds a list"),
        ({}, "holds no generator weights.* holds nothing"),
        ({"state": {}, "param_groups": []}, "holds no generator weights.* holds state, param_groups"),
        ({"params": {"step": 3}}, "'params' in it holds step"),
    ],
)
def test_file_without_weights_is_rejected_with_what_it_holds(contents, message, tmp_path):
    torch.save(contents, tmp_path / "net.pth")
    with pytest.raises(UserError, match=message):
        generator_weights(tmp_path / "net.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_diverged_weights_are_rejected_by_name(value, tmp_path):
    state = foreign_state("SeD")
    state["HRconv.bias"][3] = value
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"NaN or infinite values in HRconv\.bias"):
        generator_weights(tmp_path / "net.pth")


def with_one_doubling_fewer(state):
    """An x2 file in old ESRGAN names, from an x4 one."""
    layers = {"model.8": "model.5", "model.10": "model.7"}
    parameters = [(*name.rpartition("."), value) for name, value in state.items()]
    return {
        layers.get(layer, layer) + dot + parameter: value
        for layer, dot, parameter, value in parameters
        if layer != "model.6"
    }


def without(state, *names):
    return {name: value for name, value in state.items() if name not in names}


@pytest.mark.parametrize(
    ("state", "generator", "message"),
    [
        (lambda: small_swinir().state_dict(), small_rrdb, r"holds SwinIR .*, but the options ask for RRDB$"),
        (lambda: foreign_state("BasicSR"), small_swinir, r"holds RRDB .*, but the options ask for SwinIR$"),
        (lambda: foreign_state("BasicSR"), lambda: small_rrdb(13), "with blocks 11 where the options ask for 13$"),
        (
            lambda: RRDBNet(features=16, blocks=BLOCKS, growth=8).state_dict(),
            small_rrdb,
            "with features 16 where the options ask for 4 and growth 8 where the options ask for 32$",
        ),
        (
            lambda: with_one_doubling_fewer(foreign_state("old ESRGAN")),
            small_rrdb,
            "x2 or 3, .* but the options ask for x4$",
        ),
        (
            lambda: foreign_state("BasicSR"),
            lambda: RRDBNet(features=4, blocks=BLOCKS, growth=32, scale=3),
            "x4, .* but the options ask for x3$",
        ),
        (lambda: small_swinir().state_dict(), lambda: small_swinir(window=2), "window 4 where the options ask for 2$"),
        (
            lambda: without(foreign_state("SeD"), "conv_last.bias") | {"extra.weight": torch.ones(1)},
            small_rrdb,
            r"do not fit the generator of the options \(missing: conv_last\.bias; unexpected: extra\.weight\)",
        ),
        (
            lambda: foreign_state("SeD") | {"conv_last.bias": torch.ones(3, dtype=torch.int64)},
            small_rrdb,
            r"do not fit .* \(of another type: conv_last\.bias torch\.int64 for torch\.float32\)",
        ),
        (
            lambda: foreign_state("old ESRGAN") | {"model.99999999999.weight": torch.ones(1)},
            small_rrdb,
            r"do not fit .* \(unexpected: model\.99999999999\.weight\)",
        ),
        (
            lambda: foreign_state("SeD") | {"conv_first.weight": torch.tensor(1.0)},
            small_rrdb,
            r"do not fit .* \(of another shape: conv_first\.weight \(\) for \(4, 3, 3, 3\)\)",
        ),
        (
            lambda: nn.Linear(2, 3).state_dict(),
            small_rrdb,
            r"it is the wrong file \(it holds weight, bias\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_reported_with_what_differs(state, generator, message, tmp_path):
    torch.save(state(), tmp_path / "net.pth")
    weights = generator_weights(tmp_path / "net.pth")
    with pytest.raises(UserError, match=message) as caught:
        load_into(generator(), weights, tmp_path / "net.pth")
    assert "net.pth" in str(caught.value)


def test_weights_that_do_not_fit_leave_the_network_unchanged(tmp_path):
    generator = small_rrdb()
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    torch.save(without(foreign_state("SeD"), "conv_last.bias"), tmp_path / "net.pth")
    with pytest.raises(UserError):
        load_into(generator, generator_weights(tmp_path / "net.pth"), tmp_path / "net.pth")
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())


def test_weights_under_two_names_are_rejected(tmp_path):
    torch.save(foreign_state("BasicSR") | {"trunk_conv.weight": torch.ones(4, 4, 3, 3)}, tmp_path / "net.pth")
    with pytest.raises(UserError, match="twice, in BasicSR names and under other names"):
        generator_weights(tmp_path / "net.pth")


@pytest.mark.parametrize("style", ["SeD", "BasicSR", "old ESRGAN"])
def test_weights_in_any_names_are_loaded_into_a_network_of_spandrel_that_has_names_of_its_own(style, tmp_path):
    generator = SpandrelGenerator(foreign_state("SeD"))
    state = foreign_state(style)
    torch.save({"params": {name: value + 0.01 for name, value in state.items()}}, tmp_path / "net.pth")
    load_into(generator, generator_weights(tmp_path / "net.pth"), tmp_path / "net.pth")
    other = spandrel.ModelLoader().load_from_file(tmp_path / "net.pth").model
    assert generator.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(generator.state_dict()[name], value) for name, value in other.state_dict().items())
