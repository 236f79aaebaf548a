"""The architecture and options of a network are detected from its state dict."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spandrel.architectures.HAT import HAT
from spandrel.architectures.SwinIR import SwinIR as OtherSwinIR
from torch import nn

from sed_sr.models.build import GENERATORS
from sed_sr.models.rrdb import RESIZING, RRDBNet
from sed_sr.models.swinir import UPSAMPLER_SCALES, SwinIR
from sed_sr.utils.weights.architecture import JPEG_WINDOW, describe, detect_architecture

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")  # in spandrel

SMALL = {"embed_dim": 12, "depths": (1, 2), "heads": (2, 3)}


def on_meta(network, **options):
    with torch.device("meta"):
        return network(**options).state_dict()


@st.composite
def rrdb_options(draw):
    sizes = {"features": (1, 90), "blocks": (1, 12), "growth": (1, 60)}
    options = {"type": "rrdb", **{name: draw(st.integers(*sizes[name])) for name in sizes}}
    return options, draw(st.sampled_from(list(RESIZING)))


@st.composite
def swinir_options(draw):
    heads = draw(st.lists(st.integers(1, 6), min_size=1, max_size=11))
    embed_dim = draw(st.integers(1, 3)) * 60
    upsampler = draw(st.sampled_from(list(UPSAMPLER_SCALES)))
    options = {
        "type": "swinir",
        "embed_dim": embed_dim,
        "depths": tuple(draw(st.lists(st.integers(1, 3), min_size=len(heads), max_size=len(heads)))),
        "heads": tuple(heads),
        "window": draw(st.integers(1, 12).filter(lambda window: window != JPEG_WINDOW)),
        "mlp_ratio": draw(st.integers(1, 4 * embed_dim)) / embed_dim,
        "upsampler": upsampler,
        "resi_connection": draw(st.sampled_from(("1conv", "3conv"))),
    }
    return options, draw(st.sampled_from(UPSAMPLER_SCALES[upsampler]))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(rrdb_options() | swinir_options())
def test_detected_options_are_those_that_the_network_was_built_with(network):
    options, scale = network
    arguments = {name: value for name, value in options.items() if name != "type"}
    state = on_meta(GENERATORS[options["type"]], scale=scale, **arguments)
    assert detect_architecture(state, stated_scale=scale) == (options, scale)


def test_published_networks_have_the_default_options():
    options = {"type": "rrdb", "features": 64, "blocks": 23, "growth": 32}
    assert detect_architecture(on_meta(RRDBNet)) == (options, 4)
    assert describe(on_meta(RRDBNet)) == "RRDB (23 blocks, 64 features, growth 32), x4"
    sizes = "6 groups of 6 blocks, 180 features, 6 heads, window 8, MLP ratio 2, pixelshuffle"
    assert describe(on_meta(SwinIR)) == f"SwinIR ({sizes}), x4"


def other_swinir(**changes):
    """State dict of a relative of SwinIR that this project does not have."""
    sizes = {"embed_dim": 12, "depths": [1, 2], "num_heads": [2, 3], "window_size": 8, "mlp_ratio": 2.0}
    return OtherSwinIR(**{**sizes, "upscale": 4, "upsampler": "pixelshuffle", **changes}).state_dict()


def test_relatives_are_described_and_not_detected():
    grey = {"conv_last.weight": torch.zeros(1, 64, 3, 3)}
    relatives = {
        "denoising), x1, from 1 channels to 1": other_swinir(upscale=1, upsampler="", in_chans=1),
        "window 7, MLP ratio 2, without": other_swinir(upscale=1, upsampler="", window_size=7, img_size=63),
        "x4, from 3 channels to 1": on_meta(RRDBNet, blocks=1) | grey,
        "growth 32), x2 or 3": on_meta(RRDBNet, blocks=1, scale=3),
        "x1, on images pixel-unshuffled by 2": {
            name: value for name, value in on_meta(RRDBNet, blocks=1, scale=2).items() if "upconv2" not in name
        },
    }
    for words, state in relatives.items():
        assert words in describe(state)
        assert detect_architecture(state) is None, words


def test_an_rrdb_with_one_upsampling_is_ours_only_if_the_file_states_x3():
    state = on_meta(RRDBNet, blocks=1, scale=3)
    assert detect_architecture(state, stated_scale=2) is None
    assert detect_architecture(state, stated_scale=3)[1] == 3


def test_networks_built_on_swinir_are_not_taken_for_it():
    hat = HAT(embed_dim=12, depths=(2,), num_heads=(2,), upscale=4, upsampler="pixelshuffle", window_size=4)
    state = hat.state_dict()
    assert state.keys() >= {"conv_first.weight", "layers.0.residual_group.blocks.0.attn.relative_position_bias_table"}
    assert detect_architecture(state) is None
    assert describe(state) is None


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
