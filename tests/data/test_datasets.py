import itertools
from collections import Counter
from functools import partial

import numpy as np
import pytest
import scipy.stats
import skimage.data
import torch

from sed_sr.data.batches import BicubicPairs, GivenPairs
from sed_sr.data.datasets import HRImages, HRPatches, PairedImages
from sed_sr.data.images import read_rgb, write_image
from sed_sr.data.loader import SampleStream, make_loader
from sed_sr.data.pairs import Pairs
from sed_sr.data.prepare.lr_images import shrink_file
from sed_sr.options.errors import UserError

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


SYMMETRIES = {  # the pixel numbers of a square from top left on, as numpy turns and flips them
    "identity": lambda square: square,
    "flip": np.fliplr,
    **{f"rotation by {90 * turns}": partial(np.rot90, k=turns) for turns in (1, 2, 3)},
    **{
        f"rotation by {90 * turns} and flip": lambda square, k=turns: np.fliplr(np.rot90(square, k))
        for turns in (1, 2, 3)
    },
}


@pytest.mark.parametrize(
    ("augment", "expected"),
    [
        ((), {"identity"}),
        (("flip",), {"identity", "flip"}),
        (("rotate",), {"identity", "rotation by 90", "rotation by 180", "rotation by 270"}),
        (("rotate", "flip"), set(SYMMETRIES)),
    ],
)
@pytest.mark.parametrize("kind", ["paired", "hr", "patches"])
def test_exactly_the_stated_symmetries_occur_equally_often(tmp_path, write_pair, augment, expected, kind):
    """The image is as large as the crop, so that a sample is the image in one of its orientations."""
    write_pair(tmp_path, "0001", (8, 8))
    folders, sizes = (tmp_path / "hr", tmp_path / "lr_x4"), {"scale": 4, "lr_patch_px": 8}
    dataset = {
        "paired": lambda: PairedImages(*folders, **sizes, augment=augment),
        "hr": lambda: HRImages({folders[0]: 1}, hr_px=32, augment=augment),
        "patches": lambda: HRPatches({folders[0]: 1}, **sizes, augment=augment),
    }[kind]()
    images = {"hr": read_rgb(folders[0] / "0001.png"), "lr": read_rgb(folders[1] / "0001x4.png")}
    counts = dict.fromkeys(expected, 0)
    for epoch in range(240):
        sample = dataset[epoch, 0]
        hr = sample["hr"].permute(1, 2, 0).numpy()
        margin = (hr.shape[0] - 32) // 2
        hr = hr[margin : margin + 32, margin : margin + 32]
        (name,) = [name for name, turn in SYMMETRIES.items() if np.array_equal(turn(images["hr"]), hr)]
        if "lr" in sample:
            assert np.array_equal(SYMMETRIES[name](images["lr"]), sample["lr"].permute(1, 2, 0).numpy())
        counts[name] += 1
    assert len(counts) == 1 or scipy.stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_default_augmentation_draws_what_it_always_drew(folders):
    """Samples of runs that were started before `augment` was a list: the orientation is one number below 8."""
    dataset = paired(folders)
    for epoch in range(20):
        rng = np.random.default_rng([1, epoch, 0])
        rng.integers(1), rng.integers(1)
        bits, image = int(rng.integers(8)), read_rgb(folders[0] / "0000.png")
        for bit, turn in ((1, np.flipud), (2, np.fliplr), (4, lambda square: square.transpose(1, 0, 2))):
            image = turn(image) if bits & bit else image
        assert np.array_equal(dataset[epoch, 0]["hr"].permute(1, 2, 0).numpy(), image)


def test_every_position_of_the_patch_occurs(folders):
    dataset = paired(folders, augment=())
    corners = {tuple(dataset[epoch, 1]["lr"][:2, 0, 0].tolist()) for epoch in range(600)}
    assert corners == set(itertools.product(range(9 - PATCH_PX + 1), range(14 - PATCH_PX + 1)))


def test_the_last_lr_pixel_of_a_side_rounded_up_is_never_used(tmp_path, write_pair):
    write_pair(tmp_path, "0001", (8, 8))
    hr = tmp_path / "hr/0001.png"
    write_image(hr, read_rgb(hr)[:-1, :-2])  # 31x30: the LR image of 8x8 is ceil(HR / 4)
    dataset = PairedImages(tmp_path / "hr", tmp_path / "lr_x4", scale=4, lr_patch_px=6, augment=())
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


def test_workers_do_not_change_samples_or_the_global_random_state(folders):
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
def test_image_damaged_during_training_is_a_user_error(folders, num_workers):
    dataset = paired(folders)
    (folders[0] / "0002.png").write_bytes(b"")
    loader = make_loader(dataset, SampleStream(4, batch_size=2, batches=4), num_workers=num_workers, device_type="cpu")
    with pytest.raises(UserError) as error:
        list(loader)
    assert str(folders[0] / "0002.png") in str(error.value)
    assert "\n" not in str(error.value)


def test_the_set_is_checked_when_it_is_made(folders):
    with pytest.raises(UserError, match=r"1 of 4 .*/0000x4\.png is 6x6, smaller than the LR patch of 7"):
        PairedImages(*folders, scale=4, lr_patch_px=7)
    with pytest.raises(UserError, match=r"4 of 4 .* at scale 2"):
        PairedImages(*folders, scale=2, lr_patch_px=PATCH_PX)


HR_PX = 40


@pytest.fixture
def make_hr(tmp_path, coordinate_image):
    """make_hr({folder: (images, weight)}, size) -> HRImages of coordinates"""

    def make(folders, size=(50, 48), **arguments):
        for name, (images, _) in folders.items():
            for number in range(images):
                write_image(tmp_path / name / f"{name}{number}.png", coordinate_image(*size))
        roots = {tmp_path / name: weight for name, (_, weight) in folders.items()}
        return HRImages(roots, **{"hr_px": HR_PX, **arguments})

    return make


def names_seen(dataset, epochs):
    return Counter(dataset[key]["name"] for key in itertools.product(epochs, range(len(dataset))))


def test_images_are_seen_exactly_as_often_as_the_weights_of_their_folders_say(make_hr):
    dataset = make_hr({"a": (4, 1), "b": (6, 0.5), "c": (2, 3), "d": (5, 0.2)})
    assert len(dataset) == 4 * 1 + 6 * 0.5 + 2 * 3 + 5 * 0.2
    times = {"a": 1, "b": 0.5, "c": 3, "d": 0.2}
    for start in (0, 3):  # of any ten epochs
        seen = names_seen(dataset, range(start, start + 10))
        assert len(seen) == 4 + 6 + 2 + 5
        assert all(count == 10 * times[name[0]] for name, count in seen.items())


def test_every_image_is_seen_though_the_weight_is_tiny_or_does_not_divide(make_hr):
    dataset = make_hr({"a": (3, 1), "b": (7, 0.01), "c": (5, 0.7)})
    assert len(dataset) == 3 + 1 + round(0.7 * 5)
    seen = names_seen(dataset, range(35))
    assert {name: count for name, count in seen.items() if name[0] == "b"} == {f"b{n}": 5 for n in range(7)}
    # Four of five an epoch, whichever they are.
    assert {name: count for name, count in seen.items() if name[0] == "c"} == {f"c{n}": 28 for n in range(5)}
    for epoch in range(5):
        assert max(count for name, count in names_seen(dataset, [epoch]).items() if name[0] == "c") == 1


def test_fractions_of_a_folder_go_through_it_in_a_shuffled_order_that_follows_the_seed(make_hr):
    def order(dataset):
        return [dataset[epoch, 0]["name"] for epoch in range(40)]

    folders = {"a": (20, 0.05)}
    one, other = order(make_hr(folders, seed=1)), order(make_hr(folders, seed=2))
    assert one[:20] == one[20:]
    assert sorted(one[:20]) == sorted(other[:20]) != one[:20] != other[:20]


def test_an_hr_crop_is_a_whole_part_of_its_image_and_every_corner_occurs(make_hr):
    dataset = make_hr({"a": (1, 1)}, size=(42, 43), augment=())
    corners = set()
    for epoch in range(150):
        crop = dataset[epoch, 0]["hr"].int()
        assert crop.shape == (3, HR_PX, HR_PX)
        top, left = crop[:2, 0, 0].tolist()
        assert torch.equal(crop[0], torch.arange(top, top + HR_PX)[:, None].expand(HR_PX, HR_PX).int())
        assert torch.equal(crop[1], torch.arange(left, left + HR_PX).expand(HR_PX, HR_PX).int())
        corners.add((top, left))
    assert corners == set(itertools.product(range(3), range(4)))


def test_an_hr_sample_depends_on_seed_epoch_and_index_alone(make_hr):
    def same(a, b):
        return a["name"] == b["name"] and torch.equal(a["hr"], b["hr"])

    folders = {"a": (3, 1), "b": (2, 0.5)}
    one, other = make_hr(folders, size=(99, 99)), make_hr(folders, size=(99, 99))
    keys = list(itertools.product(range(4), range(4)))
    samples = {key: one[key] for key in keys}
    assert all(same(samples[key], other[key]) for key in reversed(keys))
    changed = make_hr(folders, size=(99, 99), seed=2)
    assert not any(same(samples[key], changed[key]) for key in keys)
    assert len({sample["hr"].numpy().tobytes() for sample in samples.values()}) == len(keys)

    state = torch.get_rng_state()
    by_workers = [
        list(make_loader(one, SampleStream(4, batch_size=3, batches=4), num_workers=number, device_type="cpu"))
        for number in (0, 2)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(*by_workers, strict=True):
        assert a["hr"].shape == (3, 3, HR_PX, HR_PX)
        assert same(a, b)


@pytest.mark.parametrize("size", [(33, 50), (50, 39), (35, 36), (32, 32)])
@pytest.mark.parametrize("hr_px", [40, 100])
def test_small_images_are_reflected_beyond_their_right_and_lower_edges(make_hr, size, hr_px):
    dataset = make_hr({"a": (1, 1)}, size=size, hr_px=hr_px, augment=())
    crop = dataset[0, 0]["hr"].numpy()
    # numpy's reflection does not repeat the edge either, and goes back and forth as often as it takes.
    padded = np.pad(
        read_rgb(dataset.folders[0][0]), [(0, max(0, hr_px - side)) for side in size] + [(0, 0)], mode="reflect"
    )
    top, left = crop[:2, 0, 0]
    np.testing.assert_array_equal(crop.transpose(1, 2, 0), padded[top : top + hr_px, left : left + hr_px])
    for start, side in ((top, size[0]), (left, size[1])):
        assert start <= max(0, side - hr_px)


def test_hr_images_are_turned_in_eight_ways(make_hr):
    dataset = make_hr({"a": (1, 1)})
    corners = [dataset[epoch, 0]["hr"][:2, :2, :2].int() for epoch in range(100)]
    ways = {(*(c[:, 1, 0] - c[:, 0, 0]).tolist(), *(c[:, 0, 1] - c[:, 0, 0]).tolist()) for c in corners}
    assert len(ways) == 8


def test_hr_folders_are_checked_when_the_set_is_made_and_images_when_they_are_read(make_hr, tmp_path):
    dataset = make_hr({"a": (2, 1), "b": (1, 1)})
    dataset.folders[1][0].write_bytes(b"")
    with pytest.raises(UserError, match=str(tmp_path / "b/b0.png")):
        dataset[0, 2]
    with pytest.raises(UserError, match=f"1 of 3 images in {tmp_path / 'a'} and {tmp_path / 'b'} cannot be used"):
        HRImages({tmp_path / "a": 1, tmp_path / "b": 1}, hr_px=HR_PX)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"no image in {tmp_path / 'empty'}"):
        HRImages({tmp_path / "a": 1, tmp_path / "empty": 1}, hr_px=HR_PX)


PHOTO = skimage.data.astronaut()


def write_photos(folder, sizes):
    for number, (height, width) in enumerate(sizes):
        write_image(folder / f"{number:04d}.png", PHOTO[150 - 10 * number :, 150:][:height, :width])


@pytest.mark.parametrize("scale", [3, 4])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_of_hr_alone_are_those_of_lr_files_made_of_it(tmp_path, scale, num_workers):
    """Crops, turns and LR, in images whose sides the scale does not divide, where many crops touch a border."""
    write_photos(tmp_path / "hr", [(61, 40), (32, 33), (50, 77), (90, 49), (45, 45)])
    for path in (tmp_path / "hr").iterdir():
        shrink_file(path, output=tmp_path / "lr", scale=scale, compression_level=1, resume=False)
    sizes = {"scale": scale, "lr_patch_px": 8}
    alone, paired = HRPatches({tmp_path / "hr": 1}, **sizes), PairedImages(tmp_path / "hr", tmp_path / "lr", **sizes)
    order = [alone[0, index]["name"] for index in range(5)]  # images have another order there
    paired.pairs = Pairs(
        paired.pairs.hr.select(f"{name}.png" for name in order),
        paired.pairs.lr.select(f"{name}x{scale}.png" for name in order),
    )

    def batches(dataset, pairs):
        stream = SampleStream(5, batch_size=4, batches=25)
        for loaded in make_loader(dataset, stream, num_workers=num_workers, device_type="cpu"):
            yield loaded["name"], pairs(loaded, seed=0, device=torch.device("cpu"))

    differences = []
    made, given = batches(alone, BicubicPairs(scale=scale)), batches(paired, GivenPairs())
    for (made_names, ours), (given_names, theirs) in zip(made, given, strict=True):
        assert made_names == given_names
        assert torch.equal(ours.hr, theirs.hr)
        assert ours.lr.shape == theirs.lr.shape
        differences.append(((ours.lr - theirs.lr) * 255).abs())
    differences = torch.stack(differences)
    if scale == 4:
        assert not differences.any()
    else:  # values half-way between two levels
        assert differences.max() < 1.01
        assert differences.mean() < 1e-4


def test_a_patch_may_be_as_large_as_the_image_or_one_pixel(tmp_path):
    write_photos(tmp_path, [(35, 34)])
    for lr_patch_px in (1, 8):
        hr = HRPatches({tmp_path: 1}, scale=4, lr_patch_px=lr_patch_px)[0, 0]["hr"]
        assert hr.shape == (3, 4 * (lr_patch_px + 4), 4 * (lr_patch_px + 4))


def test_images_smaller_than_the_patch_are_named_with_their_size_and_what_is_needed(tmp_path):
    write_photos(tmp_path / "a", [(40, 39), (40, 44)])
    write_photos(tmp_path / "b", [(40, 40)])
    folders = {tmp_path / "a": 1, tmp_path / "b": 1}
    with pytest.raises(UserError, match=r"1 of 3 images .*/a/0000\.png is 39x40, smaller than the HR patch of 40x40"):
        HRPatches(folders, scale=4, lr_patch_px=10)
    dataset = HRPatches(folders, scale=4, lr_patch_px=9)
    assert sorted(names_seen(dataset, range(2)).values()) == [2, 4]  # both folders have an image 0000
    write_photos(tmp_path / "a", [(40, 30), (30, 44)])
    with pytest.raises(UserError, match=r"/a/000[01]\.png is now smaller than the patch; it changed during the run"):
        [dataset[0, index] for index in range(3)]
