"""Learning rate schedules against PyTorch's schedulers."""

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, MultiStepLR

from sed_sr.models.schedules import cosine, stepwise, warmup

STEPS = 12


def rates(scheduler_of) -> list[float]:
    """The learning rates of a PyTorch scheduler that starts from 1."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler: LRScheduler = scheduler_of(optimizer)
    found = []
    for _ in range(STEPS):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


def test_stepwise_equals_pytorch():
    expected = rates(lambda optimizer: MultiStepLR(optimizer, milestones=[3, 5], gamma=0.5))
    assert [stepwise(step, milestones=[3, 5], decay=0.5) for step in range(STEPS)] == expected


def test_cosine_equals_pytorch_and_ends_at_zero():
    expected = rates(lambda optimizer: CosineAnnealingLR(optimizer, T_max=STEPS))
    assert [cosine(step, total_steps=STEPS) for step in range(STEPS)] == pytest.approx(expected)
    assert cosine(STEPS, total_steps=STEPS) == cosine(2 * STEPS, total_steps=STEPS) == 0


@pytest.mark.parametrize("warmup_steps", [0, 1, 5])
def test_warmup_equals_pytorch(warmup_steps):
    start = 1 / (warmup_steps + 1)
    expected = rates(lambda optimizer: LinearLR(optimizer, start_factor=start, total_iters=warmup_steps))
    assert [warmup(step, warmup_steps=warmup_steps) for step in range(STEPS)] == pytest.approx(expected)
