import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sed_sr.data.images import has_scale_suffix, list_images, read_rgb, read_unchanged, write_image, write_unchanged
from sed_sr.data.pairs import find_pairs
from sed_sr.data.prepare.grid import Grid, read_sizes, single_jobs
from sed_sr.data.prepare.subimage_files import cut_images, lanczos
from sed_sr.data.prepare.subimages import extract as extract_jobs
from sed_sr.options.errors import UserError

SCRIPT = Path(__file__).parents[3] / "extract_subimages.py"


# Run by every Python process whose PYTHONPATH has it.
SITECUSTOMIZE = """
import os

fsync = os.fsync

def logged(descriptor):
    with open(os.environ["FSYNC_LOG"], "a") as log:
        log.write("fsync\\n")
    fsync(descriptor)

os.fsync = logged
"""
# What a power failure can leave of a file that was not flushed.
DAMAGE = (
    lambda content: b"",
    lambda content: content[: len(content) // 2],
    lambda content: content[:-1],
    lambda content: content[: len(content) // 3] + bytes(len(content) // 3) + content[len(content) // 3 * 2 :],
    lambda content: bytes(len(content)),
)


def command(*arguments):
    return [sys.executable, str(SCRIPT), "--n_thread", "2", *map(str, arguments)]


def extract(*arguments):
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=120)


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".grid")


def assert_one_sentence(done, *parts):
    assert done.returncode == 2
    assert done.stderr.startswith("extract_subimages.py: error: ")
    assert done.stderr.count("\n") == 1
    for part in parts:
        assert str(part) in done.stderr


def assert_aligned(hr_folder, lr_folder):
    """Every HR sub-image is its LR sub-image with pixels as 4x4 blocks; returns how many there are."""
    pairs = find_pairs(hr_folder, lr_folder)
    for hr_path, lr_path in pairs:
        assert hr_path.name == lr_path.name
        blocks = read_rgb(lr_path).repeat(4, axis=0).repeat(4, axis=1)
        np.testing.assert_array_equal(read_rgb(hr_path), blocks)
    return len(pairs)


@pytest.fixture
def noise(tmp_path):
    folder = tmp_path / "noise"
    folder.mkdir()
    for number in range(6):
        image = np.random.default_rng(number).integers(0, 256, (640, 640, 3), dtype=np.uint8)
        write_image(folder / f"{number}.png", image, compression_level=0)
    return folder


grids = st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(0, 40))


@given(grids, st.integers(0, 300))
def test_offsets_cover_a_side_of_any_length(grid, length_px):
    crop_px, step_px, thresh_px = grid
    offsets = Grid(*grid).offsets(length_px)
    if length_px < crop_px:
        assert offsets == []
        return
    steps = np.diff(offsets)
    assert offsets[0] == 0
    assert (steps[:-1] == step_px).all()
    assert (steps > 0).all()
    assert (steps <= max(step_px, length_px)).all()
    uncovered = length_px - (offsets[-1] + crop_px)
    assert 0 <= uncovered <= thresh_px
    # The last one is flush with the end if it is not where the steps lead.
    assert offsets[-1] % step_px == 0 or uncovered == 0


@given(grids, st.integers(1, 8), st.integers(0, 1000))
def test_hr_offsets_are_scale_times_lr_offsets_for_any_size(grid, scale, hr_length_px):
    lr = Grid(*grid).offsets(hr_length_px // scale)
    hr = Grid(*(scale * length for length in grid)).offsets(hr_length_px // scale * scale)
    assert hr == [scale * offset for offset in lr]


def test_folders_cut_one_after_the_other_are_aligned_for_odd_sizes(tmp_path, write_pair):
    for number, (lr_size, extra) in enumerate([((30, 30), (0, 0)), ((41, 33), (3, 1)), ((37, 52), (2, 2))]):
        write_pair(tmp_path, f"{number}", lr_size, hr_extra=extra)
    hr = extract("--input", tmp_path / "hr", "--output", tmp_path / "sub", "--crop_size", 80, "--step", 40)
    lr = extract("--input", tmp_path / "lr_x4", "--output", tmp_path / "sub_x4", "--crop_size", 20, "--step", 10)
    assert hr.returncode == lr.returncode == 0
    assert hr.stdout.count("\n") == lr.stdout.count("\n") == 2
    # 30: offsets 0, 10. 41: 0, 10, 20, 21. 33: 0, 10, 13. 37: 0, 10, 17. 52: 0, 10, 20, 30, 32.
    assert assert_aligned(tmp_path / "sub", tmp_path / "sub_x4") == 2 * 2 + 4 * 3 + 3 * 5
    assert names(tmp_path / "sub")[:5] == [f"0_s00{n}.png" for n in (1, 2, 3, 4)] + ["1_s001.png"]


def test_pairs_cut_together_are_aligned_also_when_lr_is_rounded_up(tmp_path, write_pair):
    write_pair(tmp_path, "a", (30, 35), hr_extra=(1, 3))
    write_pair(tmp_path, "b", (41, 33))
    b = tmp_path / "hr/b.png"
    write_image(b, read_rgb(b)[:-1, :-3])  # 163x129 of 164x132: now LR is ceil(HR / 4)
    done = extract(
        *("--input", tmp_path / "hr", "--output", tmp_path / "sub"),
        *("--input_lr", tmp_path / "lr_x4", "--output_lr", tmp_path / "sub_x4"),
        *("--crop_size", 80, "--step", 40),
    )
    assert done.returncode == 0
    assert assert_aligned(tmp_path / "sub", tmp_path / "sub_x4") == 2 * 3 + 3 * 3


def test_subimages_are_numbered_row_by_row_and_placed_as_numbered(tmp_path, coordinate_image):
    (tmp_path / "in").mkdir()
    write_image(tmp_path / "in/a.png", coordinate_image(40, 64))
    extract("--input", tmp_path / "in", "--output", tmp_path / "out", "--crop_size", 32, "--step", 16)
    corners = [tuple(read_rgb(path)[0, 0, :2].tolist()) for path in list_images(tmp_path / "out")]
    assert corners == [(top, left) for top in (0, 8) for left in (0, 16, 32)]


@pytest.mark.parametrize("shape", [(24, 24), (24, 24, 3), (24, 24, 4)])
def test_16_bits_grey_and_alpha_stay_as_stored(tmp_path, shape):
    stored = np.random.default_rng(0).integers(0, 65536, shape, dtype=np.uint16)
    (tmp_path / "in").mkdir()
    write_unchanged(tmp_path / "in/a.png", stored)
    extract("--input", tmp_path / "in", "--output", tmp_path / "out", "--crop_size", 16, "--step", 8)
    cut = read_unchanged(tmp_path / "out/a_s004.png")
    assert cut.dtype == np.uint16
    np.testing.assert_array_equal(cut, stored[8:, 8:])


def test_bad_images_are_named_and_the_others_cut(tmp_path, write_pair):
    for stem, lr_size in (("good", (20, 20)), ("broken", (20, 20)), ("small", (19, 40)), ("wrong", (20, 20))):
        write_pair(tmp_path, stem, lr_size)
    lr = tmp_path / "lr_x4/brokenx4.png"
    lr.write_bytes(lr.read_bytes()[:-30])
    write_image(tmp_path / "lr_x4/wrongx4.png", np.zeros((20, 25, 3), np.uint8))
    done = extract(
        *("--input", tmp_path / "hr", "--output", tmp_path / "sub"),
        *("--input_lr", tmp_path / "lr_x4", "--output_lr", tmp_path / "sub_x4"),
        *("--crop_size", 80, "--step", 40),
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    for part in ("brokenx4.png", "small.png is 160x76", "wrongx4.png is 25x20"):
        assert part in done.stderr
    assert "1 done, 3 failed" in done.stdout
    # No half pairs: what is there can be trained on.
    assert names(tmp_path / "sub") == names(tmp_path / "sub_x4") == ["good_s001.png"]


def test_mistakes_are_user_errors_and_nothing_is_written(tmp_path, write_pair):
    write_pair(tmp_path, "0001", (20, 20))
    hr, lr, out = tmp_path / "hr", tmp_path / "lr_x4", tmp_path / "out"
    good = ["--input", hr, "--output", out, "--crop_size", 80, "--step", 40]
    assert_one_sentence(extract(*good, "--input", tmp_path / "missing"), tmp_path / "missing")
    assert_one_sentence(extract(*good, "--output", hr), hr)
    assert_one_sentence(extract(*good, "--step", 0), "step 0")
    assert_one_sentence(extract(*good, "--crop_size", 82), "82", "scale 4")
    assert_one_sentence(extract(*good, "--n_thread", 0), "--n_thread is 0")
    assert_one_sentence(extract(*good, "--compression_level", 10), "--compression_level is 10")
    assert_one_sentence(extract(*good, "--input_lr", lr), "--output_lr")
    assert_one_sentence(extract(*good, "--input_lr", lr, "--output_lr", out), out)
    for clashing in ("0001.jpg", "0001x4.png"):
        (hr / clashing).touch()
        assert_one_sentence(extract(*good), "0001.png", clashing)
        (hr / clashing).unlink()
    write_image(hr / "0002.png", np.zeros((80, 80, 3), np.uint8))
    assert_one_sentence(extract(*good, "--input_lr", lr, "--output_lr", tmp_path / "out_x4"), "0002.png")
    assert names(tmp_path) == ["hr", "lr_x4"]


def test_existing_output_is_rejected_resumed_or_replaced(tmp_path, coordinate_image):
    (tmp_path / "in").mkdir()
    for stem in "ab":
        write_image(tmp_path / f"in/{stem}.png", coordinate_image(24, 32))
    out = tmp_path / "out"
    arguments = ["--input", tmp_path / "in", "--output", out, "--crop_size", 16, "--step", 8]
    assert extract(*arguments).returncode == 0
    whole = {path.name: path.read_bytes() for path in out.iterdir()}
    assert len(list(out.glob("*.png"))) == 2 * 2 * 3

    assert_one_sentence(extract(*arguments), out, "--resume", "--overwrite")

    (out / "b_s002.png").unlink()
    (out / ".b_s002.png.7.tmp").touch()
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
    done = extract(*arguments, "--resume")
    assert done.returncode == 0
    assert "wrote 1 sub-images" in done.stdout
    assert {path.name: path.read_bytes() for path in out.iterdir()} == whole
    assert times.items() <= {path.name: path.stat().st_mtime_ns for path in out.iterdir()}.items()

    for option, value in (("--crop_size", 24), ("--step", 4), ("--thresh_size", 8), ("--scale", 2)):
        assert_one_sentence(extract(*arguments, "--resume", option, value), "was cut with crop_size 16, step 8")
    assert_one_sentence(extract(*arguments, "--overwrite", "--crop_size", 240), "as large as a sub-image of 240x240")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == whole

    (out / "notes_s.txt").touch()
    done = extract(*arguments, "--overwrite", "--crop_size", 24)
    assert "removed 12 images" in done.stdout
    assert names(out) == ["a_s001.png", "a_s002.png", "b_s001.png", "b_s002.png", "notes_s.txt"]


def identities(folder):
    """{name: what changes when a file is written again}"""
    stats = {path.name: path.stat() for path in folder.iterdir()}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def test_resume_replaces_damaged_subimages_only(tmp_path, coordinate_image):
    (tmp_path / "in").mkdir()
    for stem in "ab":
        write_image(tmp_path / f"in/{stem}.png", coordinate_image(24, 32))
    out = tmp_path / "out"
    arguments = ["--input", tmp_path / "in", "--output", out, "--crop_size", 16, "--step", 8]
    assert "were damaged" not in extract(*arguments).stdout
    whole, before = {path.name: path.read_bytes() for path in out.iterdir()}, identities(out)
    damaged = names(out)[3:8]  # of both images
    for name, damage in zip(damaged, DAMAGE, strict=True):
        (out / name).write_bytes(damage(whole[name]))

    done = extract(*arguments, "--resume")
    assert done.returncode == 0
    assert "wrote 5 sub-images" in done.stdout
    assert "; 5 files of an earlier run were damaged and made again" in done.stdout
    assert {path.name: path.read_bytes() for path in out.iterdir()} == whole
    after = identities(out)
    assert {name for name in names(out) if after[name] != before[name]} == set(damaged)


def test_folder_with_the_name_of_a_subimage_is_named(tmp_path, coordinate_image):
    (tmp_path / "in").mkdir()
    write_image(tmp_path / "in/a.png", coordinate_image(16, 16))
    (tmp_path / "out/a_s001.png").mkdir(parents=True)
    arguments = ["--input", tmp_path / "in", "--output", tmp_path / "out", "--crop_size", 16, "--step", 8]
    assert_one_sentence(extract(*arguments, "--resume"), f"cannot remove the damaged file {tmp_path}/out/a_s001.png")


@pytest.mark.parametrize("packed", [[], ["--pack"]])
def test_the_number_of_flushed_files_does_not_grow_with_the_number_of_images(tmp_path, coordinate_image, packed):
    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE)
    flushed = []
    for count in (1, 5):
        folder, out, log = (tmp_path / f"{name}_{count}" for name in ("in", "out", "log"))
        folder.mkdir()
        for number in range(count):
            write_image(folder / f"{number}.png", coordinate_image(24, 32))
        words = command("--input", folder, "--output", out, "--crop_size", 16, "--step", 8, *packed)
        environment = os.environ | {"PYTHONPATH": str(tmp_path), "FSYNC_LOG": str(log)}
        subprocess.run(words, env=environment, check=True, timeout=60)
        flushed.append(log.read_text().count("fsync"))
    assert 0 < flushed[0] == flushed[1]  # how it was cut, and the table of a pack


def test_all_subimages_are_flushed_together_at_the_end(tmp_path, monkeypatch, coordinate_image):
    (tmp_path / "in").mkdir()
    write_image(tmp_path / "in/a.png", coordinate_image(24, 32))
    out, flushed = tmp_path / "out", []
    monkeypatch.setattr(
        "sed_sr.data.prepare.jobs.flush_file_systems", lambda folders: flushed.append((folders, names(out)))
    )
    jobs, how = single_jobs(tmp_path / "in", out, scale=4), {"overwrite": False, "resume": False}
    extract_jobs(jobs, Grid(16, 8, 0), compression_level=1, workers=1, **how)
    assert flushed == [([out], [f"a_s00{number}.png" for number in range(1, 7)])]


@pytest.fixture
def photos(tmp_path):
    """A folder of two photographs whose sides no scale divides."""
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(skimage.data.coffee()[:301, :390]).save(folder / "coffee.png")
    Image.fromarray(skimage.data.astronaut()[:230, :203]).save(folder / "astronaut.png")
    return folder


def cut(folder, output, sizes, *, grid, scale=4):
    """What the command does in its workers; returns how many sub-images were written."""
    jobs = single_jobs(folder, output, scale=scale, sizes=read_sizes(sizes))
    return sum(cut_images(job, grid=Grid(*grid), compression_level=1, resume=False) for job in jobs)


SIZES = {"1": "", "0.75": "_scale3of4", "0.5": "_scale1of2", "1/3": "_scale1of3"}


def test_subimages_of_reduced_sizes_are_crops_of_the_image_that_pillow_shrinks(tmp_path, photos):
    written = cut(photos, tmp_path / "out", SIZES, grid=(64, 32, 0))
    expected = {}
    for path in list_images(photos):
        with Image.open(path) as photo:
            for text, suffix in SIZES.items():
                # As Real-ESRGAN's script has it: sides rounded down, Lanczos.
                factor = 1 / 3 if text == "1/3" else float(text)
                size = int(photo.width * factor), int(photo.height * factor)
                shrunk = np.asarray(photo.resize(size, Image.Resampling.LANCZOS))
                boxes = Grid(64, 32, 0).boxes(*(side // 4 * 4 for side in shrunk.shape[:2]))
                for number, (top, left) in enumerate(boxes, 1):
                    name = f"{path.stem}_s{number:03d}{suffix}.png"
                    expected[name] = shrunk[top : top + 64, left : left + 64]
    assert len(expected) == written
    assert names(tmp_path / "out") == sorted(expected)
    for name, pixels in expected.items():
        np.testing.assert_array_equal(read_rgb(tmp_path / "out" / name), pixels)


def test_full_size_gives_the_same_files_alone_and_among_others(tmp_path, photos):
    arguments = ["--input", photos, "--output", tmp_path / "alone", "--crop_size", 64, "--step", 64]
    assert extract(*arguments).returncode == 0
    cut(photos, tmp_path / "both", ["1/2", "1.0"], grid=(64, 64, 0))
    alone, both = ({path.name: path.read_bytes() for path in list_images(tmp_path / n)} for n in ("alone", "both"))
    assert {name: content for name, content in both.items() if "_scale" not in name} == alone
    assert len(both) > len(alone)


@given(st.lists(st.fractions(Fraction(1, 1000), 1, max_denominator=1000), min_size=1, unique=True, max_size=5))
def test_sizes_are_read_back_from_the_largest_on(sizes):
    assert read_sizes([str(size) for size in sizes]) == tuple(sorted(sizes, reverse=True))


def test_names_of_all_sizes_and_images_differ_and_none_is_an_lr_name(tmp_path):
    # Sources that are called like sub-images, cut and shrunk, of one another.
    stems = ["a", "a_s001", "a_scale1of3", "a_s001_scale1of3", "a_s001_scale1of3_s001", "a_s001_s001"]
    (tmp_path / "in").mkdir()
    for stem in stems:
        write_unchanged(tmp_path / f"in/{stem}.png", np.zeros((24, 24), np.uint8))
    # Sides of 24, 12, 8 and 7.
    written = cut(tmp_path / "in", tmp_path / "out", ["1", "0.5", "1/3", "0.333"], grid=(6, 6, 0), scale=1)
    assert len(names(tmp_path / "out")) == written == len(stems) * (4 * 4 + 2 * 2 + 2 * 2 + 2 * 2)
    assert not any(has_scale_suffix(Path(name).stem) for name in names(tmp_path / "out"))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_mode_is_shrunk_as_its_colours_are_read(tmp_path, dtype, channels):
    photo = skimage.data.astronaut()[:120, :160]
    alpha = np.random.default_rng(0).integers(0, 256, photo.shape[:2], dtype=np.uint8)
    stored = {1: photo[:, :, 0], 3: photo[:, :, ::-1], 4: np.dstack([photo[:, :, ::-1], alpha])}[channels]
    (tmp_path / "in").mkdir()
    write_unchanged(tmp_path / "in/a.png", stored.astype(dtype) * (257 if dtype == np.uint16 else 1))
    assert cut(tmp_path / "in", tmp_path / "out", ["1/2"], grid=(60, 60, 20)) == 1
    copy = tmp_path / "out/a_s001_scale1of2.png"
    assert read_unchanged(copy).dtype == dtype
    assert read_unchanged(copy).shape[2:] == stored.shape[2:]
    colours = Image.fromarray(read_rgb(tmp_path / "in/a.png"))
    expected = np.asarray(colours.resize((80, 60), Image.Resampling.LANCZOS))[:60, :60]
    # 8 bits are rounded after rows and after columns, 16 bits once: they may differ by the rounding between.
    assert np.abs(read_rgb(copy).astype(int) - expected).max() <= (0 if dtype == np.uint8 else 1)


def test_16_bits_are_shrunk_by_the_definition_of_lanczos_rounded_once_and_clipped():
    def weights(length, shrunk_length):
        """(shrunk_length, length): a sinc of three lobes on each side, as wide as the pixels of the smaller image."""
        factor = length / shrunk_length
        centres = (np.arange(shrunk_length)[:, None] + 0.5) * factor
        distances = (np.arange(length) + 0.5 - centres) / factor
        lobes = np.where(np.abs(distances) < 3, np.sinc(distances) * np.sinc(distances / 3), 0)
        return lobes / lobes.sum(axis=1, keepdims=True)

    # Black and white, so that it overshoots at both ends.
    image = (np.random.default_rng(0).integers(0, 2, (40, 50)) * 65535).astype(np.uint16)
    expected = weights(40, 30) @ image @ weights(50, 25).T
    assert expected.min() < 0
    assert expected.max() > 65535
    # Half a step is the rounding; the rest is what 32-bit floats lose.
    assert np.abs(lanczos(image, 30, 25) - expected.clip(0, 65535)).max() < 0.55


def test_depths_that_png_does_not_hold_are_refused_at_every_size(tmp_path):
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in/a.tiff"), np.zeros((24, 24), np.float32))
    for size in ("1", "0.5"):
        with pytest.raises(UserError, match="PNG does not hold float32 values"):
            cut(tmp_path / "in", tmp_path / "out", [size], grid=(8, 8, 0))


def test_copies_smaller_than_a_subimage_are_counted_but_do_not_fail(tmp_path, photos):
    (photos / "broken.png").write_bytes(b"no image")
    arguments = ["--input", photos, "--output", tmp_path / "out", "--crop_size", 152, "--step", 152]
    done = extract(*arguments, "--scales", "1", "3/4", "1/2", "1/3")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "broken.png" in done.stderr
    # At 3/4 coffee is 292x225, astronaut 152x172; at 1/2 195x150 and 101x115.
    assert "scale 3/4" not in done.stdout
    assert "at scale 1/2, 2 of 3 images are smaller than a sub-image" in done.stdout
    assert "at scale 1/3, 2 of 3 images are smaller than a sub-image" in done.stdout
    kinds = Counter(re.sub(r"_s\d+", "", name) for name in names(tmp_path / "out"))
    # Offsets flush with the end are added to 0: 300x388 -> 2x3, 228x200 -> 2x2, 224x292 -> 2x2, 172x152 -> 2x1.
    assert kinds == {"coffee.png": 6, "astronaut.png": 4, "coffee_scale3of4.png": 4, "astronaut_scale3of4.png": 2}


def test_resume_and_overwrite_respect_the_sizes(tmp_path, photos):
    arguments = ["--input", photos, "--output", tmp_path / "out", "--crop_size", 64, "--step", 64]
    sizes = ["--scales", "1", "0.5"]
    assert extract(*arguments, *sizes).returncode == 0
    whole = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    for name in ("coffee_s001_scale1of2.png", "astronaut_s002.png"):
        (tmp_path / "out" / name).unlink()
    done = extract(*arguments, "--scales", "1/2", "1", "--resume")
    assert done.returncode == 0
    assert "wrote 2 sub-images" in done.stdout
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == whole
    others = extract(*arguments, "--scales", "1", "1/3", "--resume")
    assert_one_sentence(others, "at multiples of 4, at scales 1 1/2, not", "at scales 1 1/3;")
    assert extract(*arguments, "--overwrite").returncode == 0
    assert names(tmp_path / "out") == sorted(n for n in whole if n != ".grid" and "_scale" not in n)


@pytest.mark.parametrize("texts", [["0"], ["2"], ["a"], ["1/0"], ["-0.5"], ["nan"], ["0.33333"], ["1", "0.5", "1/2"]])
def test_sizes_that_cannot_be_used_are_named(texts):
    with pytest.raises(UserError, match=re.escape(f"--scales has {texts[-1]!r}")):
        read_sizes(texts)


def test_reduced_sizes_are_for_hr_images_alone(tmp_path, write_pair):
    write_pair(tmp_path, "0001", (20, 20))
    hr, lr, out = tmp_path / "hr", tmp_path / "lr_x4", tmp_path / "out"
    sizes = ["--crop_size", 16, "--step", 16, "--scales", "1", "0.5"]
    assert_one_sentence(extract("--input", lr, "--output", out, *sizes), "--scales", "0001x4.png is LR by its name")
    pair = ["--input", hr, "--output", out, "--input_lr", lr, "--output_lr", tmp_path / "out_x4"]
    assert_one_sentence(extract(*pair, *sizes), "--scales", "--input_lr")
    small = ["--input", hr, "--output", out, "--crop_size", 64, "--step", 64, "--scales", "1/2"]
    assert_one_sentence(extract(*small), "at scale 1/2 as large as a sub-image of 64x64")
    assert_one_sentence(extract("--input", hr, "--output", out, "--scales", "half"), "--scales has 'half'")
    assert names(tmp_path) == ["hr", "lr_x4"]


def test_sides_are_those_of_the_published_script_for_every_length():
    for size in map(Fraction, SIZES):
        assert all(int(length * size) == int(length * float(size)) for length in range(1, 10_000))


def start_and_wait_for_a_subimage(arguments, out):
    process = subprocess.Popen(
        command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell starts its background jobs, this test perhaps among them, deaf to Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while process.poll() is None and not any(out.glob("*.png")):
        time.sleep(0.005)
    return process


def test_killed_run_leaves_intact_files_and_no_orphan_processes_and_can_be_resumed(tmp_path, noise):
    out = tmp_path / "out"
    arguments = ["--input", noise, "--output", out, "--crop_size", 480, "--step", 80, "--compression_level", 9]
    process = start_and_wait_for_a_subimage(arguments, out)
    process.kill()
    process.communicate(timeout=60)  # returns when the last process that holds its pipes, workers too, is gone
    written = list(out.glob("*.png"))
    expected = 6 * 3 * 3
    assert 0 < len(written) < expected
    assert all(read_rgb(path).shape == (480, 480, 3) for path in written)
    assert extract(*arguments, "--resume").returncode == 0
    assert len(names(out)) == len(list(out.glob("*.png"))) == expected


def test_ctrl_c_prints_one_line_and_leaves_no_partial_files(tmp_path, noise):
    out = tmp_path / "out"
    arguments = ["--input", noise, "--output", out, "--crop_size", 480, "--step", 20, "--n_thread", 1]
    process = start_and_wait_for_a_subimage(arguments, out)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "extract_subimages.py: interrupted"
    assert "Traceback" not in errors
    assert not list(out.glob(".*.tmp"))
    # Images begun are finished: every one has all of its 9x9 sub-images or none.
    assert 0 < len(names(out)) < 6 * 81
    assert len(names(out)) % 81 == 0


def test_failed_write_ends_the_run_with_a_user_error(tmp_path, noise):
    out = tmp_path / "out"
    limited = ["bash", "-c", 'ulimit -f 100; exec "$@"', "limited", *command("--input", noise, "--output", out)]
    done = subprocess.run(limited, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "cannot write" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert names(out) == []
