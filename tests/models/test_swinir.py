"""SwinIR against an independent implementation; released files, padding, stochastic depth, gradient checkpointing."""

import copy

import numpy as np
import pytest
import spandrel
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spandrel.architectures.SwinIR import SwinIR as OtherSwinIR

from sed_sr.models.padding import reflect_pad
from sed_sr.models.swinir import UPSAMPLER_SCALES, SwinIR, shift_mask
from sed_sr.options.errors import UserError
from sed_sr.utils.runtime.memory import TensorBytes

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")  # in the other implementation

TINY = {"embed_dim": 12, "depths": (2, 3), "heads": (2, 3), "window": 8}


@pytest.fixture(scope="module")
def tiny(fill_parameters):
    return fill_parameters(SwinIR(**TINY)).eval()


def lr_image(*size, batch=1):
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(0))


def other_implementation(state):
    return spandrel.ModelLoader().load_from_state_dict(dict(state)).model.eval()  # loads strictly


def assert_same(sr, expected):
    torch.testing.assert_close(sr, expected, rtol=1e-4, atol=1e-5 * expected.std().item())


# Files contain the mask for 64x64; 21x37 and 30x16 are not multiples of the window and padded in the same way.
@pytest.mark.parametrize("size", [(8, 8), (16, 16), (24, 16), (21, 37), (30, 16), (64, 64), (16, 64), (64, 16)])
@torch.no_grad()
def test_equals_an_independent_implementation(size, tiny):
    lr = lr_image(*size, batch=2)
    sr = tiny(lr)
    assert sr.shape == (2, 3, 4 * size[0], 4 * size[1])
    assert_same(sr, other_implementation(tiny.state_dict())(lr))


@pytest.mark.parametrize(
    ("upsampler", "scale"), [(upsampler, scale) for upsampler, scales in UPSAMPLER_SCALES.items() for scale in scales]
)
@pytest.mark.parametrize("resi_connection", ["1conv", "3conv"])
@torch.no_grad()
def test_every_upsampler_and_scale_equals_an_independent_implementation(
    upsampler, scale, resi_connection, fill_parameters
):
    arguments = {**TINY, "upsampler": upsampler, "scale": scale, "resi_connection": resi_connection}
    net = fill_parameters(SwinIR(**arguments)).eval()
    other = spandrel.ModelLoader().load_from_state_dict(net.state_dict())
    assert (other.scale, other.model.upsampler) == (scale, "" if upsampler == "none" else upsampler)
    lr = lr_image(21, 16)
    sr = net(lr)
    assert sr.shape == (1, 3, 21 * scale, 16 * scale)
    assert_same(sr, other.model.eval()(lr))


@torch.no_grad()
def test_swinir_l_for_real_sr_has_28_01_million_parameters():
    with torch.device("meta"):
        net = SwinIR(embed_dim=240, depths=(6,) * 9, heads=(8,) * 9, upsampler="nearest+conv", resi_connection="3conv")
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 2) == 28.01


@torch.no_grad()
def test_published_network_equals_an_independent_implementation(fill_parameters):
    net = fill_parameters(SwinIR()).eval()
    lr = lr_image(10, 16)
    assert_same(net(lr), other_implementation(net.state_dict())(lr))


def test_published_network_has_11_900_199_parameters_and_the_released_buffers():
    with torch.device("meta"):
        net = SwinIR()
    assert sum(p.numel() for p in net.parameters()) == 11_900_199
    state = net.state_dict()
    masks = [name for name in state if name.endswith("attn_mask")]
    assert masks == [f"layers.{i}.residual_group.blocks.{j}.attn_mask" for i in range(6) for j in (1, 3, 5)]
    assert all(state[name].shape == (64, 64, 64) for name in masks)  # 64 windows in a patch of 64x64
    # The released file has 67,869,037 bytes: the tensors, names and padding.
    assert sum(t.numel() * t.element_size() for t in state.values()) == pytest.approx(67_869_037, rel=0.01)


@torch.no_grad()
def test_state_dict_is_exchanged_strictly_both_ways(tiny):
    state = tiny.state_dict()
    theirs = other_implementation(state).state_dict()
    assert theirs.keys() == state.keys()
    for name, value in state.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=0, msg=name)
    fresh = SwinIR(**TINY).eval()
    fresh.load_state_dict(theirs, strict=True)
    lr = lr_image(16, 16)
    torch.testing.assert_close(fresh(lr), tiny(lr), rtol=0, atol=0)


def test_recomputed_buffers_equal_those_of_an_independent_implementation(tiny):
    # The tests above pass our buffers to the other implementation, and so do not check them.
    theirs = OtherSwinIR(img_size=64, embed_dim=12, depths=[2, 3], num_heads=[2, 3], window_size=8, mlp_ratio=2.0)
    theirs = dict(theirs.named_buffers())
    assert len(theirs) == 5 + 2  # an index for each block, a mask for each shifted one
    for name, value in theirs.items():
        torch.testing.assert_close(tiny.get_buffer(name), value, rtol=0, atol=0, msg=name)


@torch.no_grad()
def test_files_trained_with_another_patch_size_load_strictly(tiny):
    state = tiny.state_dict()
    s48 = {name: t[:36] if name.endswith("attn_mask") else t for name, t in state.items()}  # 36 windows in 48x48
    net = SwinIR(**TINY).eval()
    net.load_state_dict(s48, strict=True)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0, msg=name)
    lr = lr_image(64, 64)
    torch.testing.assert_close(net(lr), tiny(lr), rtol=0, atol=0)


def test_missing_weights_still_raise(tiny):
    state = tiny.state_dict()
    del state["conv_last.weight"]
    with pytest.raises(RuntimeError, match=r"conv_last\.weight"):
        SwinIR(**TINY).load_state_dict(state)


@torch.no_grad()
def test_state_dict_does_not_depend_on_the_sizes_of_earlier_images(tiny):
    before = list(tiny.state_dict())
    tiny(lr_image(40, 24))
    assert list(tiny.state_dict()) == before


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 5), (4, 20)])
@torch.no_grad()
def test_images_smaller_than_a_window_are_reflected_repeatedly(size, tiny):
    lr = lr_image(*size)
    height, width = size
    padding = ((0, 0), (0, 0), (0, -height % 8), (0, -width % 8))
    padded = torch.from_numpy(np.pad(lr.numpy(), padding, mode="reflect"))
    torch.testing.assert_close(tiny(lr), tiny(padded)[..., : 4 * height, : 4 * width], rtol=0, atol=0)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 20), st.integers(0, 20))
def test_padding_equals_numpy_reflect(height, width, below, right):
    image = torch.arange(float(height * width)).view(1, 1, height, width)
    expected = np.pad(image.numpy(), ((0, 0), (0, 0), (0, below), (0, right)), mode="reflect")
    np.testing.assert_array_equal(reflect_pad(image, height + below, width + right).numpy(), expected)


def test_blocks_are_dropped_in_training_only_and_later_ones_more_often(fill_parameters):
    net = fill_parameters(SwinIR(**TINY, drop_path=0.4))
    torch.manual_seed(0)
    factors = net._draw_residual_factors(batch=20_000).flatten(2)
    dropped = (factors == 0).float().mean(dim=2)
    expected = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4])[:, None].expand(-1, 2)
    torch.testing.assert_close(dropped, expected, rtol=0, atol=0.02)
    torch.testing.assert_close(factors.mean(dim=2), torch.ones(5, 2), rtol=0, atol=0.02)
    lr = lr_image(8, 8, batch=8)
    torch.manual_seed(0)
    with torch.no_grad():
        assert not torch.equal(net.train()(lr), net(lr))
        assert torch.equal(net.eval()(lr), net(lr))


@torch.no_grad()
def test_dropped_block_returns_its_input_for_each_sample(fill_parameters):
    net = fill_parameters(SwinIR(embed_dim=12, depths=(2,), heads=(2,)))
    for block in net.repeated_blocks:
        x = torch.randn(3, 8, 8, 12, generator=torch.Generator().manual_seed(0))
        mask = shift_mask(8, 8, 8)
        factors = torch.tensor([0.0, 1.0, 2.0]).view(1, 3, 1, 1, 1).repeat(2, 1, 1, 1, 1)
        factors[1, 2] = 0
        dropped, kept, doubled = block(x, mask, factors).split(1)
        whole = block(x, mask)
        assert torch.equal(dropped, x[:1])
        torch.testing.assert_close(kept, whole[1:2])
        torch.testing.assert_close(doubled, x[2:] + 2 * block._attend(block.norm1(x), mask)[2:])


def test_linear_layers_start_from_a_truncated_normal_with_std_0_02():
    torch.manual_seed(0)
    net = SwinIR(embed_dim=60, depths=(2,), heads=(6,))
    for name, module in net.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05), name
            assert not module.bias.any(), name
        elif hasattr(module, "relative_position_bias_table"):
            assert module.relative_position_bias_table.std().item() == pytest.approx(0.02, rel=0.1), name


def test_inconsistent_depths_and_heads_raise():
    with pytest.raises(UserError, match="2 depths and 1 heads"):
        SwinIR(depths=(6, 6), heads=(6,))
    with pytest.raises(UserError, match=r"embed_dim 64.*\(4, 6\) heads"):
        SwinIR(embed_dim=64, depths=(1, 1), heads=(4, 6))
    with pytest.raises(UserError, match=r"nearest\+conv; with scale 3 it should be pixelshuffle or pixelshuffledirect"):
        SwinIR(upsampler="nearest+conv", scale=3)


def test_trains_after_inference_mode_on_the_same_size(tiny):
    net = copy.deepcopy(tiny)
    lr = lr_image(8, 48)
    with torch.inference_mode():
        net(lr)
    net(lr).square().mean().backward()
    assert all(p.grad.any() for p in net.parameters())


def test_checkpointing_uses_less_memory_and_gives_equal_gradients(fill_parameters):
    """Also with stochastic depth, which the recomputation has to repeat."""
    net = fill_parameters(SwinIR(embed_dim=12, depths=(4, 4), heads=(2, 2), drop_path=0.5)).train()
    lr = lr_image(16, 24, batch=4)
    peaks, gradients = [], []
    for checkpointing in (False, True):
        net.checkpointing = checkpointing
        net.zero_grad()
        torch.manual_seed(0)
        with TensorBytes() as tensors:
            net(lr).square().mean().backward()
        peaks.append(tensors.peak)
        gradients.append([p.grad for p in net.parameters()])
    assert peaks[1] < 0.6 * peaks[0]
    for kept, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, kept, rtol=0, atol=0)
