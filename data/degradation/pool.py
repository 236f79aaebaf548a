"""Pairs of earlier batches, mixed with new ones: those of a batch are resized alike, those of a step need not be."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


class PairPool:
    """A pool of LR/HR pairs (Real-ESRGAN, section 4.1, "training pair pool").

    While it fills, pairs are copied into it and go straight out again. Once it is full, the pairs of a batch take the
    places of as many random ones, which go out instead.

    Args:
        capacity: how many pairs it holds; 0: none, and every batch goes straight out.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def exchange(self, lr: Tensor, hr: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Put a batch in and take one of as many pairs out.

        Of a batch that is larger than the pool, or than the room left while it fills, the rest goes straight out.

        Args:
            lr: (B, 3, h, w) uint8. hr: (B, 3, 4h, 4w) uint8. Of one size and on one device in all calls.
            rng: chooses the pairs that go out.

        Returns:
            lr, hr: as given.
        """
        batch = [(lr_image.clone(), hr_image.clone()) for lr_image, hr_image in zip(lr, hr, strict=True)]
        room = self.capacity - len(self._pairs)
        if room:
            self._pairs += batch[:room]
            return lr, hr
        for number, place in enumerate(_places(rng, self.capacity, len(batch))):
            batch[number], self._pairs[place] = self._pairs[place], batch[number]
        lr_images, hr_images = zip(*batch, strict=True)
        return torch.stack(lr_images), torch.stack(hr_images)

    def fill(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        """Hold these pairs, each at its place; see `origins`."""
        assert len(pairs) <= self.capacity
        self._pairs = pairs


def origins(
    *, capacity: int, batch_size: int, batches: int, rng_of: Callable[[int], np.random.Generator]
) -> list[tuple[int, int]]:
    """Where the pairs of a pool come from, after so many batches were exchanged.

    Looks back over as many batches as the oldest pair of the pool is old, however long the run.

    Args:
        rng_of: what `PairPool.exchange` was given with the batch of that number, counted from 0.

    Returns:
        For each place: the batch whose pair lies there, and the pair's number in it.
    """
    places = range(min(capacity, batches * batch_size))
    found = {}
    filling = -(-capacity // batch_size)  # batches that go straight out
    for batch in range(batches - 1, filling - 1, -1):
        if len(found) == capacity:
            break
        for number, place in enumerate(_places(rng_of(batch), capacity, batch_size)):
            found.setdefault(place, (batch, number))
    return [found.get(place, divmod(place, batch_size)) for place in places]


def _places(rng: np.random.Generator, capacity: int, batch_size: int) -> list[int]:
    return rng.permutation(capacity)[:batch_size].tolist()
