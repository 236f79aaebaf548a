"""How many pairs a process computes at once: what the batch of a step asks for, or the largest that memory holds."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sed_sr.data.batches import DegradedPairs, GivenPairs
from sed_sr.models.train_step import TrainStep
from sed_sr.options.errors import UserError
from sed_sr.utils.runtime.memory import TensorBytes, unless_out_of_memory

AUTO = "auto"
USUAL = 8  # pairs at once where nothing else is asked for; the paper's
MOST = 12  # that a process computes at once unless it is told to; Real-ESRGAN's
FEW, SEVERAL = 2, 4  # pairs; with one, what does not grow with the batch may be the peak
USED_SHARE = 0.85  # of what is free: memory breaks into pieces, and kernels and sums over processes take some as well
SHRINK = 0.95  # of a batch that does not fit after all


class Batches(NamedTuple):
    """What a step is computed from."""

    size: int | str | None  # pairs that a process computes at once, or `auto`
    per_step: int | None  # such batches of each process
    total: int | None  # pairs of all processes together


def share_batches(wanted: Batches, *, processes: int) -> Batches:
    """The batches of a step, numbers that fit each other, from those of them that are given; None: not given.

    Where the size is `auto`, `settle_batch_size` is for the rest.

    Raises:
        UserError: they cannot fit each other.
    """
    size, per_step, total = wanted
    if total is None:
        return wanted if size == AUTO else _batches(size or USUAL, per_step or 1, processes)
    share, rest = divmod(total, processes)
    if rest or not share:
        raise UserError(
            f"train.total_batch_size is {total}, which {processes} processes cannot share evenly: set it to a multiple "
            f"of {processes}, such as {processes * (share + 1)}, or start another number of processes"
        )
    if size == AUTO:
        if per_step is not None:
            raise UserError(
                f"dataloader.batch_size is auto and train.total_batch_size {total}, from which "
                f"train.accumulate_batches follows; it is {per_step} and should be null"
            )
        return wanted
    if size is None:
        size = share // per_step if per_step else _largest_divisor(share, MOST)
    per_step = per_step or max(1, share // size)
    if size * per_step != share:
        raise UserError(
            f"train.total_batch_size is {total}, but {processes} process{'es' * (processes > 1)} with "
            f"dataloader.batch_size {size} and train.accumulate_batches {per_step} make {size * per_step * processes}: "
            "set the latter two to null, so that they follow from the first, or change the first"
        )
    return _batches(size, per_step, processes)


def settle_batch_size(wanted: Batches, largest: int, *, processes: int) -> Batches:
    """The batches of a step of which the size is `auto`, where each process can compute `largest` pairs at once."""
    if wanted.total is None:
        return _batches(largest, wanted.per_step or 1, processes)
    share = wanted.total // processes
    size = _largest_divisor(share, largest)
    return _batches(size, share // size, processes)


def _batches(size: int, per_step: int, processes: int) -> Batches:
    return Batches(size, per_step, size * per_step * processes)


def _largest_divisor(number: int, most: int) -> int:
    return next(divisor for divisor in range(min(number, most), 0, -1) if number % divisor == 0)


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
