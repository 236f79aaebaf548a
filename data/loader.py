"""The order in which a run sees the samples of its training set, and the processes that read them."""

import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache
from types import TracebackType
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from sed_sr.data.workers import ignore_stop_signals, usable_cores
from sed_sr.options.errors import UserError

BATCHES_AHEAD = 4  # per worker
MAX_AUTO_WORKERS = 8


def worker_count(num_workers: int | Literal["auto"], processes_here: int) -> int:
    """The number of reading processes of one training process.

    Args:
        num_workers: the number itself, or "auto": a fair share of the CPU cores that this process may use, 1 to 8.
        processes_here: training processes that share these cores.
    """
    if num_workers == "auto":
        return min(max(1, usable_cores() // processes_here), MAX_AUTO_WORKERS)
    return num_workers


class SampleStream(Sampler):
    """Batches of keys (epoch, index) from one endless stream: the permutations of all epochs, one after the other.

    Sample k of the stream belongs to epoch k // length. Batch b of all ranks together starts at sample
    first_sample + b * world_size * batch_size, and rank r takes the r-th slice of it. So no sample is dropped, a set
    smaller than a batch repeats, and two ranks with batches of 2 see the samples of one rank with batches of 4.

    Args:
        length: number of samples in the set.
        batch_size: samples per batch and rank.
        batches: how many batches to yield.
        rank, world_size: number of this process and of all processes.
        seed: of the permutations, not negative.
        first_sample: start of the stream: the number of samples that a resumed run has seen on all ranks.
    """

    def __init__(
        self,
        length: int,
        *,
        batch_size: int,
        batches: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 1,
        first_sample: int = 0,
    ) -> None:
        assert length > 0
        assert 0 <= rank < world_size
        self.length = length
        self.batch_size = batch_size
        self.batches = batches
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.first_sample = first_sample

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self.keys(range(self.batches))

    def keys(self, batches: Iterable[int]) -> Iterator[list[tuple[int, int]]]:
        """The keys of the batches with these numbers, counted from 0."""
        permutation = lru_cache(maxsize=1)(self._permutation)  # of the current epoch
        for batch in batches:
            start = self.first_sample + (batch * self.world_size + self.rank) * self.batch_size
            places = (divmod(sample, self.length) for sample in range(start, start + self.batch_size))
            yield [(epoch, int(permutation(epoch)[place])) for epoch, place in places]

    def _permutation(self, epoch: int) -> np.ndarray:
        # numpy pads seeds with zeros: without a third number, the crop of image 0 would use the same random numbers. No
        # image has the index `length`.
        return np.random.default_rng([self.seed, epoch, self.length]).permutation(self.length)


class Loader:
    """Batches of a data set along a stream, read by worker processes; see `make_loader`."""

    def __init__(self, batches: DataLoader) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        batches = iter(self._batches)
        try:
            for batch in batches:
                if isinstance(batch, UserError):
                    raise batch
                yield batch
        finally:
            # Ends the workers now. An exception that refers to them could keep them alive until the interpreter exits.
            del batches


def make_loader(dataset: Dataset, stream: Iterable[list], *, num_workers: int, device_type: str) -> Loader:
    """Load the samples of a stream.

    Args:
        dataset: maps a key (epoch, index) to a dict of tensors and strings.
        stream: yields the keys of a batch: a SampleStream, or a list of such lists.
        num_workers: reading processes; 0 reads in this process.
        device_type: "cuda" puts batches into pinned memory, from which they are copied to the GPU asynchronously.

    Returns:
        An iterable of dicts with stacked tensors and lists of strings. Iterating raises a UserError when an image
        cannot be read, also when a worker reads it.
    """
    loader = DataLoader(
        _ErrorsAsSamples(dataset),
        batch_sampler=stream,
        num_workers=num_workers,
        collate_fn=_collate,
        pin_memory=device_type == "cuda",
        prefetch_factor=BATCHES_AHEAD if num_workers else None,
        worker_init_fn=_start_worker,
        # Starting the workers draws a random number, which must not come from the global generator.
        generator=torch.Generator(),
    )
    return Loader(loader)


class _ErrorsAsSamples(Dataset):
    # An exception raised in a worker would arrive with the worker's traceback in its message; a returned one does not.
    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any] | UserError:
        try:
            return self.dataset[key]
        except UserError as error:
            return error


def _collate(samples: list[dict[str, Any] | UserError]) -> dict[str, Any] | UserError:
    errors = (sample for sample in samples if isinstance(sample, UserError))
    return next(errors, None) or default_collate(samples)


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(0)  # the workers use the cores already
    ignore_stop_signals()
    sys.excepthook = _print_unless_disconnected


def _print_unless_disconnected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    # The thread that sends tensors fails when the main process exits while receiving one; this is harmless.
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)
