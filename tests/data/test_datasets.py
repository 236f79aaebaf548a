import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.datasets import PairedImages, SampleStream, make_loader
from data.images import read_rgb, write_image
from utils.errors import UserError

PATCH_PX = 6


@pytest.fixture
def folders(tmp_path, write_pair):
    for number, lr_size in enumerate([(6, 6), (9, 14), (20, 7), (30, 31)]):
        # The last LR image is of floor(HR / scale), with HR pixels left over.
        write_pair(tmp_path, f"{number:04d}", lr_size, hr_extra=(3, 1) if number == 3 else (0, 0))
    return tmp_path / "hr", tmp_path / "lr_x4"


def paired(folders, **arguments):
    return PairedImages(*folders, scale=4, lr_patch_px=PATCH_PX, **arguments)


def equal(one, other):
    return one["name"] == other["name"] and torch.equal(one["lr"], other["lr"]) and torch.equal(one["hr"], other["hr"])


def test_hr_and_lr_patches_show_the_same_place(folders):
    dataset = paired(folders)
    for key in itertools.product(range(20), range(len(dataset))):
        sample = dataset[key]
        assert sample["lr"].shape == (3, PATCH_PX, PATCH_PX)
        assert sample["hr"].dtype == sample["lr"].dtype == torch.uint8
        blocks = sample["lr"].repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
        assert torch.equal(sample["hr"], blocks)


def test_all_eight_symmetries_occur_and_none_without_augmentation(folders):
    def orientation(patch):
        """How row and column numbers (channels 0, 1) change downwards and to the right tells the 8 symmetries apart."""
        down, right = patch[:2, 1, 0] - patch[:2, 0, 0], patch[:2, 0, 1] - patch[:2, 0, 0]
        return (*down.tolist(), *right.tolist())

    keys = [(epoch, 3) for epoch in range(200)]
    augmented, plain = paired(folders), paired(folders, augment=False)
    assert len({orientation(augmented[key]["lr"].int()) for key in keys}) == 8
    assert {orientation(plain[key]["lr"].int()) for key in keys} == {(1, 0, 0, 1)}


def test_every_position_of_the_patch_occurs(folders):
    dataset = paired(folders, augment=False)
    corners = {tuple(dataset[epoch, 1]["lr"][:2, 0, 0].tolist()) for epoch in range(600)}
    assert corners == set(itertools.product(range(9 - PATCH_PX + 1), range(14 - PATCH_PX + 1)))


def test_the_last_lr_pixel_of_a_side_rounded_up_is_never_used(tmp_path, write_pair):
    write_pair(tmp_path, "0001", (8, 8))
    hr = tmp_path / "hr/0001.png"
    write_image(hr, read_rgb(hr)[:-1, :-2])  # 31x30: the LR image of 8x8 is ceil(HR / 4)
    dataset = PairedImages(tmp_path / "hr", tmp_path / "lr_x4", scale=4, lr_patch_px=6, augment=False)
    for epoch in range(50):
        sample = dataset[epoch, 0]
        assert torch.equal(sample["hr"][:, ::4, ::4], sample["lr"])
        assert sample["lr"][:2].max() <= 6


def test_a_sample_depends_on_seed_epoch_and_index_alone(folders):
    one, other = paired(folders), paired(folders)
    keys = list(itertools.product(range(3), range(4)))
    samples = {key: one[key] for key in keys}
    assert all(equal(samples[key], other[key]) for key in reversed(keys))
    for changed in (paired(folders, seed=2)[0, 3], one[1, 3]):
        assert not equal(samples[0, 3], changed)


def test_workers_change_nothing_and_global_randomness_is_left_alone(folders):
    dataset = paired(folders)
    state = torch.get_rng_state()
    one, two = (
        list(make_loader(dataset, SampleStream(4, batch_size=3, batches=5), num_workers=number, device_type="cpu"))
        for number in (0, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert len(one) == len(two) == 5
    for a, b in zip(one, two, strict=True):
        assert a["name"] == b["name"]
        assert a["lr"].shape == (3, 3, PATCH_PX, PATCH_PX)
        assert torch.equal(a["lr"], b["lr"])
        assert torch.equal(a["hr"], b["hr"])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_image_that_breaks_during_training_is_one_sentence(folders, num_workers):
    dataset = paired(folders)
    (folders[0] / "0002.png").write_bytes(b"")
    loader = make_loader(dataset, SampleStream(4, batch_size=2, batches=4), num_workers=num_workers, device_type="cpu")
    with pytest.raises(UserError) as error:
        list(loader)
    assert str(folders[0] / "0002.png") in str(error.value)
    assert "\n" not in str(error.value)


def test_the_set_is_checked_when_it_is_made(folders):
    with pytest.raises(UserError, match=r"1 of 4 .* 0000x4\.png is 6x6, smaller than the LR patch of 7"):
        PairedImages(*folders, scale=4, lr_patch_px=7)
    with pytest.raises(UserError, match=r"4 of 4 .* at scale 2"):
        PairedImages(*folders, scale=2, lr_patch_px=PATCH_PX)


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
