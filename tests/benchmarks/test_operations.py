"""Operations are counted as PyTorch's own counter counts them, and as a formula says."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.operations import operations
from sed_sr.models.rrdb import RRDBNet


def test_operations_of_forward_and_backward_passes_are_those_of_pytorchs_counter():
    network, lr = RRDBNet(features=8, blocks=1, growth=4), torch.rand(2, 3, 8, 8)

    def once():
        network(lr).mean().backward()

    with FlopCounterMode(display=False) as theirs:
        once()
    assert operations(once) == theirs.get_total_flops()


def test_operations_of_a_step_by_autograd_grad_are_those_of_the_formula():
    layer, x = nn.Conv2d(3, 5, 3, padding=1), torch.rand(2, 3, 7, 7, requires_grad=True)
    forward = 2 * 2 * 7 * 7 * 5 * 3 * 9  # a product and a sum for each weight at each position
    assert operations(lambda: torch.autograd.grad(layer(x).sum(), [x, *layer.parameters()])) == 3 * forward
