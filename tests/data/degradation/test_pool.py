from collections import Counter

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from sed_sr.data.degradation.pool import PairPool, origins

SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=25)


def pairs(names):
    """lr (B, 3, 2, 2), hr (B, 3, 8, 8) uint8 whose pixels tell the pair's number."""
    digits = torch.tensor([[name // 256, name % 256, 0] for name in names], dtype=torch.uint8)[:, :, None, None]
    return digits.repeat(1, 1, 2, 2), digits.repeat(1, 1, 8, 8)


def names(images):
    assert (images == images[:, :, :1, :1]).all()
    return [int(image[0]) * 256 + int(image[1]) for image in images[:, :, 0, 0]]


def batches(sizes):
    first = 0
    for size in sizes:
        yield list(range(first, first + size))
        first += size


@settings(max_examples=100, deadline=None)
@given(capacity=st.integers(0, 15), sizes=SIZES, seed=st.integers(0, 1000))
def test_every_pair_is_returned_once_and_those_that_filled_the_pool_twice(capacity, sizes, seed):
    pool, rng = PairPool(capacity), np.random.default_rng(seed)
    given_pairs, came_out = [], []
    for batch in batches(sizes):
        lr, hr = pool.exchange(*pairs(batch), rng)
        assert lr.shape == (len(batch), 3, 2, 2)
        assert hr.shape == (len(batch), 3, 8, 8)
        assert names(lr) == names(hr)
        given_pairs += batch
        came_out += names(lr)
    inside = [name for lr, _ in pool._pairs for name in names(lr[None])]
    filled = given_pairs[:capacity]
    if capacity > 0:
        # Those that filled the pool went straight out, too.
        assert Counter(came_out + inside) == Counter(given_pairs + filled)
    else:
        assert came_out == given_pairs
    assert len(inside) == min(capacity, len(given_pairs))


def test_batches_are_unchanged_until_the_pool_is_full_and_mixed_afterwards():
    pool, rng = PairPool(8), np.random.default_rng(0)
    for batch in ([0, 1, 2, 3], [4, 5, 6, 7]):
        assert names(pool.exchange(*pairs(batch), rng)[0]) == batch
    came_out = names(pool.exchange(*pairs([8, 9, 10, 11]), rng)[0])
    assert set(came_out) <= set(range(8))


def test_every_pair_of_the_pool_is_equally_likely_at_every_place_of_a_batch():
    pool, rng = PairPool(6), np.random.default_rng(0)
    pool.exchange(*pairs(range(6)), rng)
    inside, leaving = list(range(6)), np.zeros((2, 6))
    for batch in batches([2] * 3000):
        came_out = names(pool.exchange(*pairs([6 + name for name in batch]), rng)[0])
        ages = sorted(inside)
        for place, name in enumerate(came_out):
            leaving[place, ages.index(name)] += 1
        inside = [name for name in inside if name not in came_out] + [6 + name for name in batch]
    for counts in leaving:
        assert chisquare(counts).pvalue > 1e-3


@settings(max_examples=100, deadline=None)
@given(capacity=st.integers(0, 15), size=st.integers(1, 12), count=st.integers(0, 40), seed=st.integers(0, 1000))
def test_origins_follow_from_the_generators_alone(capacity, size, count, seed):
    def rng_of(batch):
        return np.random.default_rng([seed, batch])

    pool = PairPool(capacity)
    for number, batch in enumerate(batches([size] * count)):
        pool.exchange(*pairs(batch), rng_of(number))
    inside = [divmod(names(lr[None])[0], size) for lr, _ in pool._pairs]
    assert origins(capacity=capacity, batch_size=size, batches=count, rng_of=rng_of) == inside


def test_origins_are_found_however_long_the_run():
    asked = []
    origins(capacity=9, batch_size=3, batches=10**9, rng_of=lambda n: asked.append(n) or np.random.default_rng(n))
    assert len(asked) < 100


def test_pool_holds_copies():
    pool, rng = PairPool(2), np.random.default_rng(0)
    lr, hr = pairs([1, 2])
    for image in pool.exchange(lr, hr, rng):
        image.zero_()
    came_out = pool.exchange(*pairs([3, 4]), rng)
    assert sorted(names(came_out[0])) == sorted(names(came_out[1])) == [1, 2]
