"""Pairs of earlier batches, mixed with new ones: those of a batch are resized alike, those of a step need not be."""

from typing import Any

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
        if self._pairs and self._pairs[0][0].device != lr.device:  # loaded from a state, on the CPU
            self._pairs = [(lr_image.to(lr.device), hr_image.to(hr.device)) for lr_image, hr_image in self._pairs]
        batch = [(lr_image.clone(), hr_image.clone()) for lr_image, hr_image in zip(lr, hr, strict=True)]
        room = self.capacity - len(self._pairs)
        if room:
            self._pairs += batch[:room]
            return lr, hr
        for number, place in enumerate(rng.permutation(self.capacity)[: len(batch)]):
            batch[number], self._pairs[place] = self._pairs[place], batch[number]
        lr_images, hr_images = zip(*batch, strict=True)
        return torch.stack(lr_images), torch.stack(hr_images)

    def state_dict(self) -> dict[str, Any]:
        """All that later batches depend on, on the CPU, for `torch.load(weights_only=True)`."""
        return {"pairs": [(lr.cpu(), hr.cpu()) for lr, hr in self._pairs]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the pool that gave the `state_dict()`; a smaller one takes as many of its pairs as it holds."""
        self._pairs = list(state["pairs"][: self.capacity])
