"""The batch size of a process: given, derived from the total batch size, or the largest that fits in memory."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sed_sr.data.batches import DegradedPairs, GivenPairs
from sed_sr.models.train_step import TrainStep
from sed_sr.options.errors import UserError
from sed_sr.utils.runtime.memory import TensorBytes, unless_out_of_memory

AUTO: Literal["auto"] = "auto"
DEFAULT_SIZE = 8  # where no size is given; the paper's
MAX_DERIVED_SIZE = 12  # of a size that follows from the total batch size; Real-ESRGAN's
SMALL, LARGE = 2, 4  # measured batch sizes; with one pair, what does not grow with the batch may be the peak
USED_SHARE = 0.85  # of the free memory; fragmentation, kernels and communication take the rest
SHRINK = 0.95  # factor of a batch size that turns out not to fit


class GivenBatches(NamedTuple):
    """What the options say of the batches of a step; None: not given."""

    size: int | Literal["auto"] | None
    per_step: int | None
    total: int | None


class Batches(NamedTuple):
    """The batches of a step."""

    size: int  # pairs in a batch of one process
    per_step: int  # batches of each process, whose gradients are accumulated
    total: int  # pairs of all processes in a step


def resolve_batches(given: GivenBatches, *, processes: int) -> Batches | GivenBatches:
    """Derive the values that are not given from those that are.

    Returns:
        The batches; `given` itself if the size is `auto`, which is up to `resolve_auto`.

    Raises:
        UserError: the given values contradict each other.
    """
    size, per_step, total = given
    if total is None:
        return given if size == AUTO else _batches(size or DEFAULT_SIZE, per_step or 1, processes)
    share, rest = divmod(total, processes)
    if rest or not share:
        raise UserError(
            f"train.total_batch_size is {total}, which {processes} processes cannot share evenly: set it to a multiple "
            f"of {processes}, such as {processes * (share + 1)}, or change the number of processes"
        )
    if size == AUTO:
        if per_step is not None:
            raise UserError(
                f"dataloader.batch_size is auto and train.total_batch_size is {total}, from which "
                f"train.accumulate_batches follows; it is {per_step} and must be null"
            )
        return given
    if size is None:
        size = share // per_step if per_step else _largest_divisor(share, MAX_DERIVED_SIZE)
    per_step = per_step or max(1, share // size)
    if size * per_step != share:
        raise UserError(
            f"train.total_batch_size is {total}, but {processes} process{'es' * (processes > 1)} with "
            f"dataloader.batch_size {size} and train.accumulate_batches {per_step} make {size * per_step * processes}: "
            "set the last two to null, so that they follow from the first, or change the first"
        )
    return _batches(size, per_step, processes)


def resolve_auto(given: GivenBatches, largest: int, *, processes: int) -> Batches:
    """The batches of a step where the size is `auto` and `largest` is the largest batch that fits on every process."""
    if given.total is None:
        return _batches(largest, given.per_step or 1, processes)
    share = given.total // processes
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
    """Measure the memory of steps with two small batches and extrapolate linearly; on a GPU, try the result.

    The steps are taken by a copy: networks, optimisers and random number generators do not change.

    Args:
        make_pairs: makes training pairs from samples; not that of the run, whose pool this would fill.
        sample: of the training set: 'hr' and perhaps 'lr', (3, H, W) uint8.
        most: upper limit of the result.
        free_bytes: memory that this process may use.
        waiting_bytes: memory of each pair of a batch in the batches that the loader keeps ready.

    Raises:
        UserError: a single pair does not fit.
    """
    device = next(train_step.generator.parameters()).device
    images = {name: value for name, value in sample.items() if isinstance(value, Tensor)}
    trial = copy.deepcopy(train_step)
    with _measured(device) as peak_bytes:

        def step(batch_size: int) -> None:
            loaded = {name: torch.stack([image] * batch_size) for name, image in images.items()}
            # watched steps need the most memory
            pairs = (make_pairs(loaded, seed=seed, device=device) for seed in range(trial.batches_per_step))
            trial(*pairs, watch=True)

        def measured(batch_size: int) -> int | None:
            return unless_out_of_memory(lambda: peak_bytes(partial(step, batch_size)))

        measured(1)  # the first step creates the moments of the optimisers
        small, large = measured(SMALL), measured(LARGE)
        size = LARGE - 1
        if small is not None and large is not None:
            pair_bytes = (large - small) / (LARGE - SMALL)
            size = int((USED_SHARE * free_bytes - small + SMALL * pair_bytes) / (pair_bytes + waiting_bytes))
        size = min(size, most)
        if large is None or device.type == "cuda":  # on a CPU, the system would kill the process
            size = shrink_until(lambda size: measured(size) is not None, size)
    if size < 1:
        raise UserError(
            "dataloader.batch_size is auto, but a step with a single pair needs more than the "
            f"{free_bytes / 1e9:.3g} GB that are free on {device}: lower dataset.hr_patch_px, use a smaller network, "
            "or set train.precision: bf16"
        )
    return size


def shrink_until(fits: Callable[[int], bool], size: int) -> int:
    """Reduce the size until it fits; 0 if no size does."""
    while size > 0 and not fits(size):
        size = int(SHRINK * size)
    return size


@contextmanager
def _measured(device: torch.device) -> Iterator[Callable[[Callable[[], None]], int]]:
    """Yields a function that calls another one and returns the peak of the bytes allocated since the block began.

    The random number generators are restored at the end.
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
