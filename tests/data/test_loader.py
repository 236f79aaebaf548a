"""The stream shows every sample once an epoch, to all processes together, and workers are counted by the cores."""

import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sed_sr.data import loader
from sed_sr.data.loader import MAX_AUTO_WORKERS, SampleStream, make_loader, worker_count


@pytest.mark.parametrize(
    ("cores", "processes_here", "workers"), [(2, 1, 2), (16, 4, 4), (16, 3, 5), (2, 8, 1), (128, 1, MAX_AUTO_WORKERS)]
)
def test_auto_shares_the_cores_among_the_processes_of_a_machine(monkeypatch, cores, processes_here, workers):
    monkeypatch.setattr(loader, "usable_cores", lambda: cores)
    assert worker_count("auto", processes_here) == workers


@pytest.mark.parametrize("num_workers", [0, 3, 50])
def test_a_given_number_of_workers_is_taken_as_it_is(num_workers):
    assert worker_count(num_workers, processes_here=4) == num_workers


def test_auto_starts_no_more_workers_than_pytorch_recommends():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_loader([], [], num_workers=worker_count("auto", processes_here=1), device_type="cpu")


def test_drawing_the_order_and_drawing_a_crop_share_no_random_numbers():
    # numpy takes (seed, epoch) and (seed, epoch, 0) for the same seed.
    order = [index for _, index in next(iter(SampleStream(50, batch_size=50, batches=1, seed=5)))]
    assert order != np.random.default_rng([5, 0, 0]).permutation(50).tolist()


def keys(*arguments, **keywords):
    return [key for batch in SampleStream(*arguments, **keywords) for key in batch]


streams = {
    "length": st.integers(1, 30),
    "batch_size": st.integers(1, 8),
    "world_size": st.integers(1, 4),
    "batches": st.integers(1, 12),
    "seed": st.integers(0, 100),
}


@settings(deadline=None)
@given(**streams)
def test_ranks_together_see_what_one_process_would(length, batch_size, world_size, batches, seed):
    ranks = [
        SampleStream(length, batch_size=batch_size, batches=batches, rank=r, world_size=world_size, seed=seed)
        for r in range(world_size)
    ]
    together = [list(itertools.chain(*parts)) for parts in zip(*ranks, strict=True)]
    assert together == list(SampleStream(length, batch_size=batch_size * world_size, batches=batches, seed=seed))
    assert len(together) == batches == len(ranks[0])


@settings(deadline=None)
@given(**streams, epochs=st.integers(1, 4))
def test_every_epoch_holds_every_image_once_over_all_ranks(length, batch_size, world_size, batches, seed, epochs):
    batches = -(-epochs * length // (batch_size * world_size))
    seen = [
        key
        for r in range(world_size)
        for key in keys(length, batch_size=batch_size, batches=batches, rank=r, world_size=world_size, seed=seed)
    ]
    assert len(set(seen)) == len(seen) == batches * batch_size * world_size
    assert set(itertools.product(range(epochs), range(length))) <= set(seen)


@settings(deadline=None)
@given(**streams, stop=st.integers(0, 100))
def test_a_resumed_stream_is_the_rest_of_the_undisturbed_one(length, batch_size, world_size, batches, seed, stop):
    whole = keys(length, batches=stop + batches, batch_size=batch_size, seed=seed)
    seen = stop * batch_size
    assert keys(length, batches=batches, first_sample=seen, batch_size=batch_size, seed=seed) == whole[seen:]
    # Also on another number of ranks, which only slices differently.
    ranks = [
        keys(length, batches=1, first_sample=seen, batch_size=1, rank=r, world_size=batch_size, seed=seed)
        for r in range(batch_size)
    ]
    assert list(itertools.chain(*ranks)) == whole[seen : seen + batch_size]


def test_epochs_and_seeds_are_shuffled_differently():
    first, second = (keys(100, batch_size=100, batches=1, first_sample=start) for start in (0, 100))
    other_seed = keys(100, batch_size=100, batches=1, seed=2)
    orders = [[index for _, index in order] for order in (first, second, other_seed)]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert len({tuple(order) for order in [*orders, range(100)]}) == 4
