import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.images import list_images, read_rgb, read_unchanged, write_image, write_unchanged
from data.pairs import find_pairs
from data.subimages import Grid

SCRIPT = Path(__file__).parents[2] / "extract_subimages.py"


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


def test_mistakes_are_one_sentence_and_nothing_is_written(tmp_path, write_pair):
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


def test_an_earlier_cut_is_refused_resumed_or_replaced(tmp_path, coordinate_image):
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


def test_a_killed_run_leaves_whole_files_no_orphans_and_can_be_resumed(tmp_path, noise):
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


def test_ctrl_c_is_one_line_and_leaves_nothing_half_done(tmp_path, noise):
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


def test_a_write_that_fails_ends_the_run_with_one_sentence(tmp_path, noise):
    out = tmp_path / "out"
    limited = ["bash", "-c", 'ulimit -f 100; exec "$@"', "limited", *command("--input", noise, "--output", out)]
    done = subprocess.run(limited, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "cannot write" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert names(out) == []
