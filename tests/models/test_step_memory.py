"""FlatGradients equals autograd for every memory format."""

import copy

import torch
from torch import nn
from torch.nn.utils import get_total_norm

from sed_sr.models.step_memory import ALIGNMENT, FlatGradients


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 7, 1), nn.Conv2d(7, 2, (1, 3), bias=False))
    return {"first": first.to(memory_format=torch.channels_last), "second": nn.Sequential(nn.Linear(4, 3), nn.PReLU())}


def objectives(made: dict[str, nn.Module]) -> dict[str, torch.Tensor]:
    image, row = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.ones(2, 4)
    return {"first": made["first"](image).square().sum(), "second": made["second"](row).square().sum()}


def test_gradients_and_their_norms_equal_those_of_autograd():
    made, reference = networks(), networks()
    flat = FlatGradients({name: list(net.parameters()) for name, net in made.items()}, scalars=5)
    flat.clear()
    for _ in range(2):  # gradients are accumulated
        for name, objective in objectives(made).items():
            flat.add(name, objective)
        for objective in objectives(reference).values():
            objective.backward()
    flat.assign_grads()
    for name, net in made.items():
        expected = [parameter.grad for parameter in reference[name].parameters()]
        for parameter, gradient in zip(net.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)
            assert parameter.grad.stride() == parameter.stride()
            assert parameter.grad.storage_offset() % ALIGNMENT == 0
        torch.testing.assert_close(flat.norm(name), get_total_norm(expected))
    assert flat.scalars.tolist() == [0.0] * 5
    flat.scale("first", torch.tensor(0.5))
    for name, factor in (("first", 0.5), ("second", 1.0)):
        for ours, theirs in zip(made[name].parameters(), reference[name].parameters(), strict=True):
            torch.testing.assert_close(ours.grad, factor * theirs.grad)
    flat.all.fill_(3.0)
    flat.clear()
    assert not any(parameter.grad.any() for net in made.values() for parameter in net.parameters())


def test_copy_has_its_own_memory():
    made = networks()
    holder = (made, FlatGradients({name: list(net.parameters()) for name, net in made.items()}, scalars=1))
    holder[1].assign_grads()
    copied, flat = copy.deepcopy(holder)
    flat.assign_grads()
    flat.all.fill_(1.0)
    assert all(parameter.grad.all() for net in copied.values() for parameter in net.parameters())
    assert not holder[1].all.any()


def test_unused_parameter_has_a_zero_gradient():
    used, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    flat = FlatGradients({"both": [used, unused]}, scalars=1)
    flat.add("both", (2 * used).sum())
    flat.assign_grads()
    assert used.grad.tolist() == [2.0] * 3
    assert unused.grad.tolist() == [0.0] * 2
