"""A pool that mixes the pairs of several batches, because all images of one batch are resized alike."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


class PairPool:
    """A pool of LR/HR pairs (Real-ESRGAN, section 4.1, "training pair pool").

    While the pool fills, a batch is copied into it and also returned. Once it is full, the pairs of a batch replace
    random pairs of the pool, which are returned instead.

    Args:
        capacity: number of pairs; with 0, every batch is returned unchanged.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def exchange(self, lr: Tensor, hr: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Put a batch in and take a batch of the same size out.

        If a batch is larger than the pool, or than the free places while it fills, the rest is returned unchanged.

        Args:
            lr: (B, 3, h, w) uint8. hr: (B, 3, 4h, 4w) uint8. The same sizes and device in all calls.
            rng: chooses the pairs to take out.

        Returns:
            lr, hr: as given.
        """
        batch = [(lr_image.clone(), hr_image.clone()) for lr_image, hr_image in zip(lr, hr, strict=True)]
        free = self.capacity - len(self._pairs)
        if free:
            self._pairs += batch[:free]
            return lr, hr
        for number, place in enumerate(_places(rng, self.capacity, len(batch))):
            batch[number], self._pairs[place] = self._pairs[place], batch[number]
        lr_images, hr_images = zip(*batch, strict=True)
        return torch.stack(lr_images), torch.stack(hr_images)

    def fill(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        """Set the content of the pool; see `origins`."""
        assert len(pairs) <= self.capacity
        self._pairs = pairs


def origins(
    *, capacity: int, batch_size: int, batches: int, rng_of: Callable[[int], np.random.Generator]
) -> list[tuple[int, int]]:
    """Where the pairs of a pool come from after a number of batches.

    It goes back only as far as the oldest pair in the pool, however long the run.

    Args:
        rng_of: the generator that `PairPool.exchange` got with a batch, by the batch's number, counted from 0.

    Returns:
        For each place of the pool: the number of the batch that its pair comes from, and of the pair in that batch.
    """
    places = range(min(capacity, batches * batch_size))
    found = {}
    filling = -(-capacity // batch_size)  # batches that fill the pool
    for batch in range(batches - 1, filling - 1, -1):
        if len(found) == capacity:
            break
        for number, place in enumerate(_places(rng_of(batch), capacity, batch_size)):
            found.setdefault(place, (batch, number))
    return [found.get(place, divmod(place, batch_size)) for place in places]


def _places(rng: np.random.Generator, capacity: int, batch_size: int) -> list[int]:
    return rng.permutation(capacity)[:batch_size].tolist()
