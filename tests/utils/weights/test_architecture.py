"""The architecture and options of a network are detected from its state dict."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spandrel.architectures.SwinIR import SwinIR as OtherSwinIR
from torch import nn

from sed_sr.models.build import GENERATORS
from sed_sr.models.rrdb import RRDBNet
from sed_sr.models.swinir import SwinIR
from sed_sr.utils.weights.architecture import describe, detect_architecture

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")  # in spandrel

SMALL = {"embed_dim": 12, "depths": (1, 2), "heads": (2, 3)}


def on_meta(network, **options):
    with torch.device("meta"):
        return network(**options).state_dict()


@st.composite
def rrdb_options(draw):
    sizes = {"features": (1, 90), "blocks": (1, 12), "growth": (1, 60)}
    return {"type": "rrdb", **{name: draw(st.integers(*sizes[name])) for name in sizes}}


@st.composite
def swinir_options(draw):
    heads = draw(st.lists(st.integers(1, 6), min_size=1, max_size=11))
    embed_dim = draw(st.integers(1, 3)) * 60
    return {
        "type": "swinir",
        "embed_dim": embed_dim,
        "depths": tuple(draw(st.lists(st.integers(1, 3), min_size=len(heads), max_size=len(heads)))),
        "heads": tuple(heads),
        "window": draw(st.integers(1, 12)),
        "mlp_ratio": draw(st.integers(1, 4 * embed_dim)) / embed_dim,
        "upsampler": draw(st.sampled_from(("pixelshuffle", "nearest+conv"))),
    }


@settings(max_examples=20, deadline=None, derandomize=True)
@given(rrdb_options() | swinir_options())
def test_detected_options_are_those_that_the_network_was_built_with(options):
    arguments = {name: value for name, value in options.items() if name != "type"}
    assert detect_architecture(on_meta(GENERATORS[options["type"]], **arguments)) == options


def test_published_networks_have_the_default_options():
    assert detect_architecture(on_meta(RRDBNet)) == {"type": "rrdb", "features": 64, "blocks": 23, "growth": 32}
    assert describe(on_meta(RRDBNet)) == "RRDB (23 blocks, 64 features, growth 32), x4"
    sizes = "6 groups of 6 blocks, 180 features, 6 heads, window 8, MLP ratio 2, pixelshuffle"
    assert describe(on_meta(SwinIR)) == f"SwinIR ({sizes}), x4"


def other_swinir(**changes):
    """State dict of a relative of SwinIR that this project does not have."""
    sizes = {"embed_dim": 12, "depths": [1, 2], "num_heads": [2, 3], "window_size": 8, "mlp_ratio": 2.0}
    return OtherSwinIR(**{**sizes, "upscale": 4, "upsampler": "pixelshuffle", **changes}).state_dict()


def on_unshuffled_images():
    return {**on_meta(RRDBNet, blocks=1), "conv_first.weight": torch.zeros(64, 12, 3, 3)}


def with_another_doubling():
    return {**on_meta(RRDBNet, blocks=1), "upconv3.weight": torch.zeros(64, 64, 3, 3)}


def test_relatives_are_described_and_not_detected():
    relatives = {
        "nearest+conv), x4, with three convolutions": other_swinir(upsampler="nearest+conv", resi_connection="3conv"),
        "pixelshuffledirect, as in lightweight SR), x4": other_swinir(upsampler="pixelshuffledirect"),
        "pixelshuffle), x8": other_swinir(upscale=8),
        "pixelshuffle), x3": other_swinir(upscale=3),
        "nearest+conv), x2": other_swinir(upscale=2, upsampler="nearest+conv"),
        "without upsampling, as for denoising), x1": other_swinir(upscale=1, upsampler=""),
        "x1, from 1 channels to 1": other_swinir(upscale=1, upsampler="", in_chans=1),
        "x2, on images pixel-unshuffled by 2": on_unshuffled_images(),
        "growth 32), x8": with_another_doubling(),
    }
    for words, state in relatives.items():
        assert words in describe(state)
        assert detect_architecture(state) is None, words


def test_other_networks_and_impossible_shapes_are_not_detected():
    states = [
        nn.Linear(2, 3).state_dict(),
        {**on_meta(RRDBNet, blocks=1), "conv_first.weight": torch.tensor(1.0)},
        {**on_meta(SwinIR, **SMALL), "conv_first.weight": torch.zeros(0, 3, 3, 3)},
        {**on_meta(SwinIR, **SMALL), f"layers.{'9' * 5000}.x": torch.tensor(1.0)},
    ]
    for state in states:
        assert detect_architecture(state) is None
        assert describe(state) is None
