"""Training pairs from loaded images: LR matches HR, and every random choice follows from the seed."""

import itertools

import pytest
import skimage.data
import torch
from torch.nn import functional as F

from sed_sr.data.batches import BicubicPairs, DegradedPairs, GivenPairs
from sed_sr.data.imresize import imresize
from sed_sr.data.tensors import to_array

CPU = torch.device("cpu")


class Shrink:
    """A degradation that leaves the picture where it is; with noise of its own draws."""

    scale = 4

    def __init__(self, noise=0.0):
        self.noise = noise

    def __call__(self, hr, *, rng):
        noise = torch.from_numpy(rng.normal(scale=self.noise, size=(len(hr), 3, 24, 24))).float() if self.noise else 0
        return ((F.avg_pool2d(hr, 4) + noise).clamp(0, 1) * 255).round() / 255


def photographs(count=3, side=96):
    cat = torch.from_numpy(skimage.data.chelsea().transpose(2, 0, 1).copy())
    return {"hr": torch.stack([cat[:, 20 * k : 20 * k + side, 90 * k : 90 * k + side] for k in range(count)])}


def make(*, noise=0.0, lr_patch_px=16, sharpening=None, pool_pairs=0):
    return DegradedPairs(Shrink(noise), lr_patch_px=lr_patch_px, sharpening=sharpening, pool_pairs=pool_pairs)


def test_given_pairs_are_the_file_values_scaled_to_0_to_1():
    loaded = {name: torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16) for name in ("lr", "hr")}
    batch = GivenPairs()(loaded, seed=0, device=CPU)
    assert batch.sharp is None
    for image in (batch.lr, batch.hr):
        torch.testing.assert_close(image[0, 0].flatten(), torch.linspace(0, 1, 256))


def levels(images):
    """float in [0, 1] -> the 8-bit values that it holds, exactly."""
    rounded = (images * 255).round()
    assert torch.equal(rounded / 255, images)
    return rounded.int()


def assert_equal_but_for_ties(one, other, *, scale):
    """At powers of two all products are exact. At others, a value half-way between two levels may become either."""
    difference = (levels(one) - levels(other)).abs()
    assert difference.max() <= (scale == 3)
    assert difference.float().mean() < 1e-4


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_bicubic_lr_is_a_crop_of_the_whole_image_shrunk(scale):
    whole = torch.from_numpy(skimage.data.astronaut().transpose(2, 0, 1).copy())[:, : 504 // scale * scale, :504]
    shrunk = torch.from_numpy(imresize(to_array(whole), scale=1 / scale).transpose(2, 0, 1).copy()).float() / 255
    patch_px = 128 // scale
    for top, left in itertools.product((2, 9, shrunk.shape[1] - patch_px - 2), repeat=2):
        rows, columns = (slice((first - 2) * scale, (first + patch_px + 2) * scale) for first in (top, left))
        lr, hr, sharp = BicubicPairs(scale=scale)({"hr": whole[None, :, rows, columns]}, seed=0, device=CPU)
        assert sharp is None
        assert_equal_but_for_ties(
            lr[0], shrunk[:, top : top + patch_px, left : left + patch_px].contiguous(), scale=scale
        )
        inside = whole[:, top * scale : (top + patch_px) * scale, left * scale : (left + patch_px) * scale]
        assert torch.equal(levels(hr)[0], inside.int())


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_turned_image_is_shrunk_to_a_turned_image(scale):
    loaded, pairs = photographs(side=96), BicubicPairs(scale=scale)
    lr = pairs(loaded, seed=0, device=CPU).lr
    for turn in (lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.mT, lambda x: x.rot90(dims=(-2, -1))):
        turned = pairs({"hr": turn(loaded["hr"])}, seed=0, device=CPU).lr
        assert not torch.equal(turned, lr)
        assert_equal_but_for_ties(turned, turn(lr), scale=scale)


@pytest.mark.parametrize("pool_pairs", [0, 4])
def test_hr_is_cut_where_lr_is_cut(pool_pairs):
    """LR is HR shrunk, here exactly, also for pairs that come out of the pool in later batches."""
    pairs = make(pool_pairs=pool_pairs)
    for seed in range(4):
        lr, hr, _ = pairs(photographs(), seed=seed, device=CPU)
        assert lr.shape == (3, 3, 16, 16)
        torch.testing.assert_close(lr, F.avg_pool2d(hr, 4), atol=0.5 / 255 + 1e-6, rtol=0)


def test_crops_reach_every_corner_and_differ_within_a_batch():
    pairs, loaded = make(), photographs(1, side=72)
    loaded["hr"] = loaded["hr"].repeat(8, 1, 1, 1)
    where = set()
    for seed in range(10):
        for hr in (pairs(loaded, seed=seed, device=CPU).hr * 255).round().byte():
            where |= {
                (top, left)
                for top in (0, 4, 8)
                for left in (0, 4, 8)
                if torch.equal(hr, loaded["hr"][0, :, top : top + 64, left : left + 64])
            }
    assert len(where) == 9


def test_seed_decides_and_nothing_else():
    one, other = make(noise=0.1), make(noise=0.1)
    one(photographs(), seed=1, device=CPU)
    torch.rand(3)
    again, first = one(photographs(), seed=7, device=CPU), other(photographs(), seed=7, device=CPU)
    assert torch.equal(again.lr, first.lr)
    assert torch.equal(again.hr, first.hr)
    assert not torch.equal(one(photographs(), seed=8, device=CPU).lr, first.lr)


def test_sharpened_hr_is_degraded_and_hr_itself_is_kept():
    """Sharpening that turns the picture into its negative shows which of the two went where."""
    lr, hr, sharp = make(sharpening=lambda images: 1 - images)(photographs(), seed=3, device=CPU)
    torch.testing.assert_close(lr, F.avg_pool2d(1 - hr, 4), atol=0.5 / 255 + 1e-6, rtol=0)
    assert torch.equal(sharp, 1 - hr)
    plain = make()(photographs(), seed=3, device=CPU)
    assert torch.equal(plain.hr, hr)
    assert torch.equal(plain.sharp, hr)


@pytest.mark.parametrize("done", [1, 2, 3, 12])
@pytest.mark.parametrize("pool_pairs", [2, 6, 7])
def test_refilled_pool_equals_that_of_an_uninterrupted_run(pool_pairs, done):
    whole, goes_on = (make(noise=0.1, pool_pairs=pool_pairs) for _ in range(2))
    expected = [whole(photographs(), seed=seed, device=CPU) for seed in range(16)]
    refill(goes_on, batches=done)
    for seed in range(done, 16):
        batch = goes_on(photographs(), seed=seed, device=CPU)
        assert torch.equal(batch.lr, expected[seed].lr)
        assert torch.equal(batch.hr, expected[seed].hr)


def refill(pairs, *, batches):
    """Of batches whose seeds are their numbers."""
    return pairs.refill(
        batch_size=3,
        batches=batches,
        load=lambda numbers: [photographs() for _ in numbers],
        seed_of=lambda batch: batch,
        device=CPU,
    )


def test_refill_loads_only_the_batches_in_the_pool():
    assert refill(make(pool_pairs=4), batches=10**6) <= 4


@pytest.mark.parametrize("changed", [{"pool_pairs": 2}, {"pool_pairs": 0}, {"pool_pairs": 9}, {"lr_patch_px": 12}])
def test_run_resumes_with_another_pool_or_patch(changed):
    after = make(**{"pool_pairs": 6, **changed})
    refill(after, batches=3)
    for seed in range(3, 7):
        lr, hr, _ = after(photographs(), seed=seed, device=CPU)
        assert lr.shape == (3, 3, after.lr_patch_px, after.lr_patch_px)
        torch.testing.assert_close(lr, F.avg_pool2d(hr, 4), atol=0.5 / 255 + 1e-6, rtol=0)
