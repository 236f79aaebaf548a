"""`dataloader.batch_size: auto`: the largest batch whose training step fits into memory."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from models.train_step import TrainStep
from utils.errors import UserError
from utils.memory import TensorBytes, unless_out_of_memory
from utils.training_pairs import DegradedPairs, GivenPairs

AUTO = "auto"
FEW, SEVERAL = 2, 4  # pairs; with one, what does not grow with the batch may be the peak
USED_SHARE = 0.85  # of what is free: memory breaks into pieces, and kernels and sums over processes take some as well
SHRINK = 0.95  # of a batch that does not fit after all


def largest_batch_size(
    train_step: TrainStep,
    make_pairs: GivenPairs | DegradedPairs,
    sample: dict[str, Any],
    *,
    most: int,
    free_bytes: int,
    waiting_bytes: int,
) -> int:
    """Measure steps of two small batches, and follow the line through them; on a GPU, try what it says.

    The steps are taken by a copy: networks, optimisers and random numbers stay as they are.

    Args:
        make_pairs: from samples to training pairs; another one than the run's, whose pool it would fill.
        sample: of the training set: 'hr' and perhaps 'lr', (3, H, W) uint8.
        most: the largest batch that makes sense.
        free_bytes: what this process may take.
        waiting_bytes: what each pair of a batch takes of it in the batches that wait for their step.

    Raises:
        UserError: not even a single pair fits.
    """
    device = next(train_step.generator.parameters()).device
    images = {name: value for name, value in sample.items() if isinstance(value, Tensor)}
    trial = copy.deepcopy(train_step)
    with _measured(device) as peak_bytes:

        def step(batch_size: int) -> None:
            loaded = {name: torch.stack([image] * batch_size) for name, image in images.items()}
            # watched, as some steps of the run are: it takes more
            pairs = (make_pairs(loaded, seed=seed, device=device) for seed in range(trial.batches_per_step))
            trial(*pairs, watch=True)

        def measured(batch_size: int) -> int | None:
            return unless_out_of_memory(lambda: peak_bytes(partial(step, batch_size)))

        measured(1)  # with the first step come the optimisers' moments
        few, several = measured(FEW), measured(SEVERAL)
        size = SEVERAL - 1
        if several is not None:
            pair_bytes = (several - few) / (SEVERAL - FEW)
            size = int((USED_SHARE * free_bytes - few + FEW * pair_bytes) / (pair_bytes + waiting_bytes))
        size = min(size, most)
        if several is None or device.type == "cuda":  # a CPU rarely says no: the system ends the process
            size = shrunk_until(lambda size: measured(size) is not None, size)
    if size < 1:
        raise UserError(
            "dataloader.batch_size is auto, but a step with a single pair needs more than the "
            f"{free_bytes / 1e9:.3g} GB that are free on {device}: lower dataset.lr_patch_px, take a smaller network, "
            "or set train.precision: bf16"
        )
    return size


def shrunk_until(fits: Callable[[int], bool], size: int) -> int:
    """The size, or the next smaller one that fits; 0 where none does."""
    while size > 0 and not fits(size):
        size = int(SHRINK * size)
    return size


@contextmanager
def _measured(device: torch.device) -> Iterator[Callable[[Callable[[], None]], int]]:
    """Hands out what calls a function and returns the most bytes that there were, of all made since the block began.

    Random numbers are afterwards what they were.
    """
    if device.type == "cuda":
        with torch.random.fork_rng(devices=[device]):
            before = torch.cuda.memory_allocated(device)

            def peak_bytes(compute: Callable[[], None]) -> int:
                torch.cuda.reset_peak_memory_stats(device)
                compute()
                return torch.cuda.max_memory_allocated(device) - before

            yield peak_bytes
    else:
        with torch.random.fork_rng(devices=[]), TensorBytes() as counted:

            def peak_bytes(compute: Callable[[], None]) -> int:
                counted.peak = 0
                compute()
                return counted.peak

            yield peak_bytes
