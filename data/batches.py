"""Training batches from the images that the loader yields: given LR/HR pairs, or LR made from HR on the device."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sed_sr.data.degradation.pipeline import Degradation
from sed_sr.data.degradation.pool import PairPool, origins
from sed_sr.data.tensors import to_float


class Batch(NamedTuple):
    """Training pairs, float in [0, 1]."""

    lr: Tensor  # (B, 3, H, W)
    hr: Tensor  # (B, 3, scale * H, scale * W)
    sharp: Tensor | None = None  # HR sharpened, where some losses compare with it


class GivenPairs:
    """Training pairs whose LR and HR images are both read from files."""

    mixes_batches = False

    def __call__(self, loaded: dict[str, Any], *, seed: int, device: torch.device) -> Batch:
        """{'lr': (B, 3, p, p), 'hr': (B, 3, P, P)}, uint8 -> the batch on `device`, float in [0, 1]."""
        lr, hr = (_for_networks(_copy_batch(loaded[key], device)) for key in ("lr", "hr"))
        return Batch(lr, hr)


class DegradedPairs:
    """Training pairs whose LR images are made from HR, after Real-ESRGAN (Wang et al., ICCVW 2021, section 3).

    A batch is sharpened and degraded, a pair is cropped from each image, and the pairs are exchanged for pairs of
    earlier batches from a pool. Every random choice derives from the seed of the batch, and the content of the pool
    from the seeds of earlier batches.

    Args:
        lr_patch_px: side of the LR image of a pair.
        sharpening: sharpens HR before the degradation, and for the losses that use sharpened HR; None: none.
        pool_pairs: capacity of the pool.
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
        """{'hr': (B, 3, P, P) uint8}, P at least scale * lr_patch_px -> a batch on `device`, float in [0, 1].

        LR is (B, 3, p, p), HR and sharpened HR are (B, 3, scale * p, scale * p) for p = lr_patch_px.
        """
        lr, hr = self._degraded(loaded, seed=seed, device=device)
        lr, hr = self.pool.exchange(lr, hr, _pool_rng(seed))
        lr, hr = _for_networks(lr), _for_networks(hr)
        return Batch(lr, hr, self._sharpen(hr))

    @torch.no_grad()
    def refill(
        self,
        *,
        batch_size: int,
        batches: int,
        load: Callable[[list[int]], Iterable[dict[str, Any]]],
        seed_of: Callable[[int], int],
        device: torch.device,
    ) -> int:
        """Restore the pool as it was after a number of batches, so that training states do not have to contain it.

        Args:
            batches: how many batches have been exchanged.
            load: yields the batches with these numbers, counted from 0, as the loader yielded them.
            seed_of: returns the seed of a batch.

        Returns:
            How many batches were computed again.
        """
        places = origins(
            capacity=self.pool.capacity,
            batch_size=batch_size,
            batches=batches,
            rng_of=lambda batch: _pool_rng(seed_of(batch)),
        )
        wanted, pairs = defaultdict(list), {}
        for batch, number in places:
            wanted[batch].append(number)
        needed = sorted(wanted)
        for batch, loaded in zip(needed, load(needed), strict=True):
            lr, hr = self._degraded(loaded, seed=seed_of(batch), device=device)
            pairs |= {(batch, number): (lr[number].clone(), hr[number].clone()) for number in wanted[batch]}
        self.pool.fill([pairs[origin] for origin in places])
        return len(needed)

    def _degraded(self, loaded: dict[str, Any], *, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """LR (B, 3, p, p) and HR (B, 3, scale * p, scale * p), uint8."""
        rng = np.random.default_rng(seed)
        hr = _copy_batch(loaded["hr"], device)
        lr = self.degradation(self._sharpen(to_float(hr)), rng=rng)
        lr = (lr * 255).round().byte()  # exact: the degradation returns multiples of 1/255
        return self._cut(lr, hr, rng)

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


def batch_seed(seed: int, *, rank: int, step: int, number: int) -> int:
    """The seed of one batch of a process.

    Args:
        seed: of the run.
        step: number of optimisation steps before it.
        number: of the batch within its step, from 1, because numpy ignores zeros at the end of a seed.
    """
    return mixed_seed(seed, rank, step, number)


def mixed_seed(*numbers: int) -> int:
    """One 64-bit seed from several numbers; similar numbers give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def _pool_rng(seed: int) -> np.random.Generator:
    # A generator of its own, so that `refill` can draw from it without making the batch.
    return np.random.default_rng([seed, 1])


def _copy_batch(images: Tensor, device: torch.device) -> Tensor:
    """Copy images to a device. A copy from pinned memory to a GPU overlaps with the previous step."""
    if device.type != "cuda":
        return images.to(device)
    copying, current = _copy_stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(copying):
        images = images.to(device, non_blocking=True)
    current.wait_stream(copying)
    images.record_stream(current)  # else their memory could be reused by the next copy while they are still read
    return images


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _for_networks(images: Tensor) -> Tensor:
    """uint8 -> float in [0, 1], channels last, the layout in which convolutions are fastest."""
    return to_float(images).contiguous(memory_format=torch.channels_last)
