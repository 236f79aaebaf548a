"""The order in which a run sees the samples of its training set, and the processes that read them."""

import sys
from collections.abc import Iterable, Iterator
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
    """Batches of keys (epoch, index) from one endless stream: a permutation of the set for every epoch, end to end.

    Sample k of the stream is of epoch k // length. Batch b of all ranks together starts at sample
    first_sample + b * world_size * batch_size, and rank r takes the r-th slice of it. So nothing is dropped, a set
    smaller than a batch repeats, and 2 ranks of 2 see together what 1 rank of 4 sees.

    Args:
        length: number of samples in the set.
        batch_size: samples per batch and rank.
        batches: how many batches to yield.
        rank, world_size: this process among all.
        seed: of the permutations, not negative.
        first_sample: where the stream begins: the number of samples that a resumed run has seen on all ranks.
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
        """The keys of these batches, counted from 0."""
        current_epoch, order = None, None
        for batch in batches:
            start = self.first_sample + (batch * self.world_size + self.rank) * self.batch_size
            keys = []
            for sample in range(start, start + self.batch_size):
                epoch, place = divmod(sample, self.length)
                if epoch != current_epoch:
                    current_epoch, order = epoch, self._permutation(epoch)
                keys.append((epoch, int(order[place])))
            yield keys

    def _permutation(self, epoch: int) -> np.ndarray:
        # numpy pads the seed with zeros: without a third number, image 0 would draw its crop from the same generator.
        # No image has the index `length`.
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
            # The workers end now. At the interpreter's end, an exception that holds on to them would keep them alive.
            del batches


def make_loader(dataset: Dataset, stream: Iterable[list], *, num_workers: int, device_type: str) -> Loader:
    """Load the samples of a stream.

    Args:
        dataset: maps a key (epoch, index) to a dict of tensors and strings.
        stream: yields the keys of a batch: a SampleStream, or a list of such lists.
        num_workers: processes; 0 loads in this one.
        device_type: "cuda" puts batches into pinned memory, from which they are copied to the GPU asynchronously.

    Returns:
        Yields the samples' dicts with stacked tensors and lists of strings. Iterating raises the UserError that reading
        an image raised, in whichever process.
    """
    loader = DataLoader(
        _ErrorsAsSamples(dataset),
        batch_sampler=stream,
        num_workers=num_workers,
        collate_fn=_collate,
        pin_memory=device_type == "cuda",
        prefetch_factor=BATCHES_AHEAD if num_workers else None,
        worker_init_fn=_start_worker,
        # Of its own: starting the workers draws a number, which must not shift the model's random numbers.
        generator=torch.Generator(),
    )
    return Loader(loader)


class _ErrorsAsSamples(Dataset):
    # An exception that leaves a worker arrives with the worker's traceback as its message; returned, it stays itself.
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
    sys.excepthook = _tell_unless_left_alone


def _tell_unless_left_alone(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    # The thread that hands tensors over would complain of a main process that leaves in the midst of taking one.
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)
