"""RRDBNet against an independent implementation; size, initialisation, gradient checkpointing."""

import math

import pytest
import spandrel
import torch

from sed_sr.models.rrdb import RRDBNet
from sed_sr.utils.runtime.memory import TensorBytes


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (16, 9), (24, 24)])
def test_equals_an_independent_implementation(size, fill_parameters):
    net = fill_parameters(RRDBNet(features=16, blocks=3))
    other = spandrel.ModelLoader().load_from_state_dict(net.state_dict()).model.eval()  # loads strictly
    lr = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        sr, expected = net(lr), other(lr)
    assert sr.shape == (2, 3, 4 * size[0], 4 * size[1])
    torch.testing.assert_close(sr, expected, rtol=1e-4, atol=1e-5 * expected.std().item())


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
