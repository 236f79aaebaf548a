"""From what a loader yields to the tensors of a training step: pairs as they are, or LR made from HR on the device."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.degradation.pipeline import Degradation
from data.degradation.pool import PairPool
from data.images import to_float
from models.train_step import Batch


class GivenPairs:
    """LR and HR as they were read."""

    mixes_batches = False

    def __call__(self, loaded: dict[str, Any], *, seed: int, device: torch.device) -> Batch:
        """Return the batch of {'lr': (B, 3, p, p), 'hr': (B, 3, 4p, 4p)}, uint8, on `device`, float in [0, 1]."""
        lr, hr = (_for_networks(_copy_batch(loaded[key], device)) for key in ("lr", "hr"))
        return Batch(lr, hr)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a batch depends on no other."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to go on from."""


class DegradedPairs:
    """LR made from HR, after Real-ESRGAN (Wang et al., ICCVW 2021, section 3).

    A batch is sharpened and degraded, a pair cut from each of its images, and the pairs exchanged for those of earlier
    batches. Every choice but the pool's content derives from the seed of the batch.

    Args:
        lr_patch_px: side of the LR image of a pair.
        sharpening: of HR, before it is degraded and for the losses that want it; None: none.
        pool_pairs: how many pairs the pool holds.
    """

    def __init__(
        self,
        degradation: Degradation,
        *,
        lr_patch_px: int,
        sharpening: Callable[[Tensor], Tensor] | None,
        pool_pairs: int,
    ) -> None:
        self.degradation = degradation
        self.lr_patch_px = lr_patch_px
        self.sharpening = sharpening
        self.pool = PairPool(pool_pairs)
        self.mixes_batches = pool_pairs > 0

    @torch.no_grad()
    def __call__(self, loaded: dict[str, Any], *, seed: int, device: torch.device) -> Batch:
        """Return a batch made from {'hr': (B, 3, P, P) uint8}, P at least 4 * lr_patch_px, on `device`.

        LR (B, 3, p, p), HR and sharpened HR (B, 3, 4p, 4p) for p = lr_patch_px; float in [0, 1].
        """
        rng = np.random.default_rng(seed)
        hr = _copy_batch(loaded["hr"], device)
        lr = self.degradation(self._sharpen(to_float(hr)), rng=rng)
        lr = (lr * 255).round().byte()  # no loss: it lies on the 8-bit grid
        lr, hr = self._cut(lr, hr, rng)
        lr, hr = self.pool.exchange(lr, hr, rng)
        lr, hr = _for_networks(lr), _for_networks(hr)
        return Batch(lr, hr, self._sharpen(hr))

    def _sharpen(self, hr: Tensor) -> Tensor:
        return hr if self.sharpening is None else self.sharpening(hr)

    def _cut(self, lr: Tensor, hr: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        side = self.lr_patch_px
        corners = rng.integers(0, [lr.shape[2] - side + 1, lr.shape[3] - side + 1], size=(len(lr), 2)).tolist()

        def crops(images: Tensor, times: int) -> Tensor:
            return torch.stack(
                [
                    image[:, top * times : (top + side) * times, left * times : (left + side) * times]
                    for image, (top, left) in zip(images, corners, strict=True)
                ]
            )

        return crops(lr, 1), crops(hr, self.degradation.scale)

    def state_dict(self) -> dict[str, Any]:
        """What later batches depend on: the pool."""
        return self.pool.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict()`. Pairs of another size are left: the options have changed since then."""
        pairs = [(lr, hr) for lr, hr in state.get("pairs", ()) if lr.shape[-1] == self.lr_patch_px]
        self.pool.load_state_dict({"pairs": pairs})


def _copy_batch(images: Tensor, device: torch.device) -> Tensor:
    """Copy images to a device; on a GPU, from pinned memory, while the step before them still runs."""
    if device.type != "cuda":
        return images.to(device)
    copying, current = _copy_stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(copying):
        images = images.to(device, non_blocking=True)
    current.wait_stream(copying)
    images.record_stream(current)  # else their memory could be given to the next copy while it is still read
    return images


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _for_networks(images: Tensor) -> Tensor:
    """Float in [0, 1], in the layout in which convolutions run fastest."""
    return to_float(images).contiguous(memory_format=torch.channels_last)
