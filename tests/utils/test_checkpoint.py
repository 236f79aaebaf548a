import pickle
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import spandrel
import torch
from torch import nn

from models.rrdb import RRDBNet
from models.swinir import SwinIR
from utils.checkpoint import (
    is_training_state,
    keep_newest,
    load,
    newest_state,
    save,
    save_generator,
    save_state,
    state_path,
)
from utils.errors import UserError
from utils.generator_weights import GeneratorWeights, load_into
from utils.generator_weights import generator_weights as recognise

FEATURES, BLOCKS, GROWTH = 4, 11, 32  # blocks of two digits; spandrel knows no other growth


def generator_weights(path: Path) -> GeneratorWeights:
    return recognise(load(path), path)


def layer_names():
    """The layers of an RRDB as the SeD, the BasicSR and the old ESRGAN files call them."""
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
    """Random weights of a small RRDB in the names of `style`."""
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
    assert f"RRDB weights in {style} names" in weights.kind


def test_safetensors_are_told_by_content(tmp_path):
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
    assert weights.kind == "SwinIR weights, taken from 'params'"


def test_half_precision_becomes_float32_and_buffers_keep_their_type(tmp_path):
    state = {name: value.half() for name, value in foreign_state("SeD").items()}
    torch.save({**state, "steps": torch.tensor(3)}, tmp_path / "net.pth")
    loaded = generator_weights(tmp_path / "net.pth").state
    assert {name: value.dtype for name, value in loaded.items() if value.dtype != torch.float32} == {
        "steps": torch.int64
    }
    assert torch.equal(loaded["conv_first.weight"], state["conv_first.weight"].float())


def test_average_is_taken_where_there_is_one(tmp_path):
    params, params_ema = small_rrdb().state_dict(), small_rrdb().state_dict()
    options = {"name": "run", "lr": 1e-4, "milestones": [1, 2], "ema": None}
    save_generator(tmp_path / "net.pth", params=params, params_ema=params_ema, options=options, step=7)
    weights = generator_weights(tmp_path / "net.pth")
    assert all(torch.equal(weights.state[name], params_ema[name]) for name in params_ema)
    assert weights.kind == "RRDB weights in SeD names, taken from 'params_ema'"
    written = load(tmp_path / "net.pth")
    assert (written["options"], written["step"]) == (options, 7)


@pytest.mark.parametrize("network", [small_rrdb, small_swinir])
def test_other_tools_read_what_is_saved(network, tmp_path):
    original = network()
    state = original.state_dict()
    save_generator(tmp_path / "net.pth", params=state, params_ema=None, options={"name": "run"}, step=1)
    assert "params_ema" not in load(tmp_path / "net.pth")
    reference = spandrel.ModelLoader().load_from_file(tmp_path / "net.pth").model
    torch.testing.assert_close(image_of(reference), image_of(original), rtol=1e-4, atol=1e-4)


class Payload:
    """Unpickling it creates a file."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("write", ["torch", "torch, old format", "pickle 2", "pickle 5"])
def test_payloads_are_refused_and_never_run(write, tmp_path):
    path, trace = tmp_path / "net.pth", tmp_path / "executed"
    contents = {"params": foreign_state("SeD"), "extra": Payload(trace)}
    if write.startswith("torch"):
        torch.save(contents, path, _use_new_zipfile_serialization=write == "torch")
    else:
        path.write_bytes(pickle.dumps({"extra": Payload(trace)}, protocol=int(write[-1])))
    for read in (load, generator_weights):
        with pytest.raises(UserError, match="could run code"):
            read(path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Payload(trace)))
    assert trace.exists(), "the payload was harmless, and so was the test"


def saved_bytes(tmp_path, **how):
    torch.save({"params": foreign_state("SeD")}, tmp_path / "whole.pth", **how)
    return (tmp_path / "whole.pth").read_bytes()


def safetensors_bytes(_):
    return safetensors.torch.save(foreign_state("SeD"))


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.99])
@pytest.mark.parametrize(
    "whole", [saved_bytes, lambda tmp: saved_bytes(tmp, _use_new_zipfile_serialization=False), safetensors_bytes]
)
def test_truncated_files_are_refused_in_a_sentence(whole, keep, tmp_path):
    contents = whole(tmp_path)
    path = tmp_path / "net.pth"
    path.write_bytes(contents[: int(keep * len(contents))])
    with pytest.raises(UserError, match=r"net\.pth (is|holds) .*"):
        load(path)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html>\n<html>\n<body>Sign in</body></html>", "is a text file that begins with '<!DOCTYPE html>'"),
        (b"hello", "is a text file"),
        (b"\n\n", "is a text file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "net.pth (is|holds)"),
        (bytes(100), "net.pth (is|holds)"),
    ],
)
def test_files_of_other_kinds_are_refused_in_a_sentence(contents, message, tmp_path):
    (tmp_path / "net.pth").write_bytes(contents)
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path / "net.pth")
    assert "\n" not in str(caught.value)


def test_missing_files_directories_and_programs_are_refused_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"net\.pth does not exist"):
        load(tmp_path / "net.pth")
    with pytest.raises(UserError, match="is a directory"):
        load(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, but CLIP's RN50.pt is such a file
        torch.jit.trace(nn.Conv2d(1, 1, 1), torch.ones(1, 1, 1, 1)).save(tmp_path / "program.pt")
    with pytest.raises(UserError, match="is a TorchScript program"):
        load(tmp_path / "program.pt")


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ([torch.ones(1)], "holds a list"),
        ({}, "holds no generator weights.* holds nothing"),
        ({"state": {}, "param_groups": []}, "holds no generator weights.* holds state, param_groups"),
        ({"params": {"step": 3}}, "'params' in it holds step"),
    ],
)
def test_files_without_weights_are_refused_by_what_they_hold(contents, message, tmp_path):
    torch.save(contents, tmp_path / "net.pth")
    with pytest.raises(UserError, match=message):
        generator_weights(tmp_path / "net.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_diverged_weights_are_refused_by_name(value, tmp_path):
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
        (lambda: small_swinir().state_dict(), small_rrdb, "architecture SwinIR where the generator has RRDB"),
        (lambda: foreign_state("BasicSR"), small_swinir, "architecture RRDB where the generator has SwinIR"),
        (lambda: foreign_state("BasicSR"), lambda: small_rrdb(13), r"blocks 11 .* 13 \(missing: RRDB_trunk\.11\.RDB1"),
        (
            lambda: RRDBNet(features=16, blocks=BLOCKS, growth=8).state_dict(),
            small_rrdb,
            r"features 16 .* 4 and growth 8 .* 32 \(of another shape: conv_first\.weight \(16, 3, 3, 3\) for \(4, 3",
        ),
        (
            lambda: with_one_doubling_fewer(foreign_state("old ESRGAN")),
            small_rrdb,
            r"scale 2 .* 4 \(missing: upconv2\.weight, upconv2\.bias\)",
        ),
        (lambda: small_swinir().state_dict(), lambda: small_swinir(window=2), "window 4 where the generator has 2"),
        (
            lambda: without(foreign_state("SeD"), "conv_last.bias") | {"extra.weight": torch.ones(1)},
            small_rrdb,
            r"do not fit the generator \(missing: conv_last\.bias; unexpected: extra\.weight\)",
        ),
        (
            lambda: nn.Linear(2, 3).state_dict(),
            small_rrdb,
            r"it is the wrong file \(missing: .* and \d+ more; unexpected: weight, bias\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_told_by_what_differs(state, generator, message, tmp_path):
    torch.save(state(), tmp_path / "net.pth")
    weights = generator_weights(tmp_path / "net.pth")
    with pytest.raises(UserError, match=message) as caught:
        load_into(generator(), weights, tmp_path / "net.pth")
    assert "net.pth" in str(caught.value)


def test_what_could_never_be_loaded_is_not_saved(tmp_path):
    with pytest.raises(AssertionError, match="pathlib"):
        save({"options": {"root": Path("data")}}, tmp_path / "net.pth")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def training_state():
    return {
        "step": 12,
        "params": small_rrdb().state_dict(),
        "params_ema": foreign_state("SeD"),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.99)}]},
        "random": torch.get_rng_state(),
    }


def test_training_state_returns_as_it_was_saved(training_state, tmp_path):
    path = state_path(tmp_path, 12)
    save_state(path, training_state)
    loaded = load(path)
    assert is_training_state(loaded)
    assert loaded.keys() - training_state.keys() == {"format"}
    assert loaded["optimizer"]["param_groups"] == training_state["optimizer"]["param_groups"]
    assert torch.equal(loaded["optimizer"]["state"][0]["exp_avg"], torch.ones(2))
    assert torch.equal(loaded["random"], training_state["random"])


def test_training_state_serves_as_generator_weights(training_state, tmp_path):
    save_state(tmp_path / "state.pth", training_state)
    weights = generator_weights(tmp_path / "state.pth")
    assert torch.equal(weights.state["conv_first.weight"], training_state["params_ema"]["conv_first.weight"])
    save_state(tmp_path / "state.pth", {**training_state, "params_ema": None})
    assert generator_weights(tmp_path / "state.pth").kind == "RRDB weights in SeD names, taken from 'params'"


def test_generator_weights_are_no_training_state(tmp_path):
    torch.save({"params": foreign_state("BasicSR")}, tmp_path / "net.pth")
    assert not is_training_state(load(tmp_path / "net.pth"))


def test_states_roll_by_step_and_other_files_stay(tmp_path):
    assert newest_state(tmp_path / "absent") is None
    assert newest_state(tmp_path) is None
    steps = [5, 300_000_000, 90_000, 100_000]
    for step in steps:
        state_path(tmp_path, step).touch()
    others = ["state_000000001.pth.tmp", ".state_999999999.pth.1a2b.tmp", "state_9.pth", "generator_000000001.pth"]
    for name in others:
        (tmp_path / name).touch()

    assert newest_state(tmp_path) == tmp_path / "state_300000000.pth"
    keep_newest(tmp_path, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"state_300000000.pth", "state_000100000.pth", *others}
    keep_newest(tmp_path, 5)
    assert len(list(tmp_path.iterdir())) == 2 + len(others)
