"""The L1 loss against PyTorch's."""

import pytest
import torch
from torch.nn import functional as F

from sed_sr.models.losses.pixel import l1_loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_l1_loss_equals_pytorch_and_its_gradient_has_the_layout_of_the_input(dtype):
    a, b = (torch.rand(2, 4, 8, 8).to(dtype).contiguous(memory_format=torch.channels_last) for _ in range(2))
    gradients = []
    for function in (l1_loss, lambda a, b: F.l1_loss(a.float(), b.float())):
        leaf = a.clone().requires_grad_()
        value = function(leaf, b)
        torch.testing.assert_close(value, F.l1_loss(a.float(), b.float()))
        gradients.append(torch.autograd.grad(value, leaf)[0])
    torch.testing.assert_close(*gradients)
    assert gradients[0].is_contiguous(memory_format=torch.channels_last)
