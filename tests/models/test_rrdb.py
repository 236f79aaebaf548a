"""RRDBNet against an independent implementation; size, initialisation, gradient checkpointing."""

import math

import numpy as np
import pytest
import spandrel
import torch
from spandrel.architectures.ESRGAN import ESRGAN

from sed_sr.models.rrdb import RESIZING, RRDBNet
from sed_sr.utils.runtime.memory import TensorBytes


def other_implementation(net):
    """The same weights in spandrel's RRDBNet. It has them in the same order, under other names."""
    factor, upsampling = RESIZING[net.scale]
    other = ESRGAN(
        in_nc=net.conv_first.in_channels,
        num_filters=net.conv_first.out_channels,
        num_blocks=len(net.RRDB_trunk),
        scale=math.prod(upsampling),
        shuffle_factor=factor if factor > 1 else None,
    )
    names = other.state_dict().keys()
    other.load_state_dict(dict(zip(names, net.state_dict().values(), strict=True)))
    return other.eval()


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("size", [(5, 6), (16, 9), (24, 24)])
def test_equals_an_independent_implementation(size, scale, fill_parameters):
    net = fill_parameters(RRDBNet(scale=scale, features=16, blocks=2))
    lr = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        sr, expected = net(lr), other_implementation(net)(lr)
    assert sr.shape == (2, 3, scale * size[0], scale * size[1])
    torch.testing.assert_close(sr, expected, rtol=1e-4, atol=1e-5 * expected.std().item())


# A bare file does not show whether its one upsampling is by 2 or 3.
@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_files_are_those_of_an_independent_implementation(scale, fill_parameters):
    net = fill_parameters(RRDBNet(scale=scale, features=16, blocks=2))
    other = spandrel.ModelLoader().load_from_state_dict(net.state_dict())  # loads strictly
    assert other.scale == scale
    lr = torch.rand(1, 3, 12, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(net(lr), other.model.eval()(lr), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1, 2])
def test_images_smaller_than_the_unshuffling_are_reflected(scale, fill_parameters):
    net = fill_parameters(RRDBNet(scale=scale, features=8, blocks=1, growth=4))
    lr = torch.rand(1, 3, 3, 5, generator=torch.Generator().manual_seed(0))
    padding = ((0, 0), (0, 0), (0, -3 % net.unshuffle), (0, -5 % net.unshuffle))
    padded = torch.from_numpy(np.pad(lr.numpy(), padding, mode="reflect"))
    with torch.no_grad():
        torch.testing.assert_close(net(lr), net(padded)[..., : 3 * scale, : 5 * scale], rtol=0, atol=0)
        assert net(lr[..., :1, :1]).shape == (1, 3, scale, scale)


def test_published_network_equals_an_independent_implementation(fill_parameters):
    net = fill_parameters(RRDBNet())
    other = spandrel.ModelLoader().load_from_state_dict(net.state_dict()).model.eval()
    lr = torch.rand(1, 3, 6, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        sr, expected = net(lr), other(lr)
    torch.testing.assert_close(sr, expected, rtol=1e-4, atol=1e-5 * expected.std().item())


def test_published_network_has_16_70_million_parameters():
    with torch.device("meta"):
        net = RRDBNet()
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 2) == 16.70


def test_dense_blocks_start_with_a_tenth_of_kaiming_weights():
    torch.manual_seed(0)
    net = RRDBNet(features=32, blocks=1, growth=32)
    for name, parameter in net.RRDB_trunk.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        else:
            expected = 0.1 * math.sqrt(2 / parameter[0].numel())
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name


def test_gradients_reach_every_parameter(fill_parameters):
    net = fill_parameters(RRDBNet(features=8, blocks=2, growth=4))
    net(torch.rand(1, 3, 6, 6)).square().mean().backward()
    assert all(p.grad.any() for p in net.parameters())


def test_checkpointing_uses_less_memory_and_gives_equal_gradients(fill_parameters):
    net = fill_parameters(RRDBNet(features=16, blocks=6, growth=8))
    lr = torch.rand(1, 3, 16, 12, generator=torch.Generator().manual_seed(0))
    peaks, gradients = [], []
    for checkpointing in (False, True):
        net.checkpointing = checkpointing
        net.zero_grad()
        with TensorBytes() as tensors:
            net(lr).square().mean().backward()
        peaks.append(tensors.peak)
        gradients.append([p.grad for p in net.parameters()])
    assert peaks[1] < 0.6 * peaks[0]
    for kept, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, kept, rtol=0, atol=0)
