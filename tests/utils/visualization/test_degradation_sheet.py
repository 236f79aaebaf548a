"""The sheet shows the operations of the degradation, for photographs of any kind and size."""

import sys

import cv2
import numpy as np
import pytest
import skimage.data
from PIL import Image

from sed_sr.data.degradation.draws import Stage
from sed_sr.data.degradation.pipeline import Degradation
from sed_sr.data.images import read_rgb, write_image
from sed_sr.data.prepare.degrade import RECIPE
from sed_sr.data.tensors import to_array, to_float, to_tensor, to_uint8
from sed_sr.options.errors import UserError
from sed_sr.utils.visualization import degradation_sheet
from sed_sr.utils.visualization.degradation_sheet import CELL_PX, DETAIL_PX, contact_sheet, most_detailed_square

HR = np.ascontiguousarray(skimage.data.astronaut()[:160, 150:310])
STAGE = Stage(  # no operation leaves an image as it is
    blur_probability=1,
    kernel_px=(7, 9),
    kernel_kinds={"iso": 0.5, "aniso": 0.5},
    sinc_probability=0.1,
    sigma_px=(1, 2),
    beta_generalized=(0.5, 4),
    beta_plateau=(1, 2),
    resize={"up": 1, "down": 0, "keep": 0},
    resize_range=(0.5, 1.5),
    gaussian_noise_probability=0.5,
    gaussian_noise_sigma=(1, 10),
    poisson_noise_scale=(0.05, 0.5),
    grey_noise_probability=0.4,
    jpeg_quality=(30, 95),
)
DEGRADATION = Degradation(first=STAGE, second=STAGE, final_sinc_probability=0.8)


def sheet(*, samples, sharpening=None):
    return contact_sheet(HR, DEGRADATION, sharpening=sharpening, seed=1, samples=samples)


def degraded(hr, row):
    rng = np.random.default_rng([1, row])
    return to_array(to_uint8(DEGRADATION(to_float(to_tensor(hr))[None], rng=rng)[0]))


def places(canvas, image, scale=1):
    """Where the detail of HR / scale lies on the canvas, its pixels repeated: (x, y) of each occurrence, from above."""
    top, left = (corner // 4 * 4 // scale for corner in most_detailed_square(HR, DETAIL_PX))
    side = DETAIL_PX // scale
    detail = image[top : top + side, left : left + side]
    enlarged = detail.repeat(CELL_PX // side, axis=0).repeat(CELL_PX // side, axis=1)
    difference = cv2.matchTemplate(canvas, enlarged, cv2.TM_SQDIFF_NORMED)
    return [(int(x), int(y)) for y, x in np.argwhere(difference < 1e-5)]


def test_every_row_runs_from_hr_to_the_lr_of_another_draw():
    canvas = sheet(samples=2)
    (x, first_y), (_, second_y) = places(canvas, HR)
    for row, y in enumerate((first_y, second_y), start=1):
        lr_x, lr_y = max(places(canvas, degraded(HR, row), 4))
        assert lr_y == y
        assert lr_x + CELL_PX + x == canvas.shape[1]  # the margins are alike


def test_sharpened_hr_is_shown_and_degraded():
    dark = HR // 3
    canvas = sheet(samples=1, sharpening=lambda images: to_float(to_tensor(dark))[None])
    [(x, y)] = places(canvas, HR)
    [(dark_x, dark_y)] = places(canvas, dark)
    assert x < dark_x < x + 1.5 * CELL_PX
    assert dark_y == y
    assert max(places(canvas, degraded(dark, 1), 4))[1] == y


def test_more_samples_do_not_change_the_first_rows():
    one, two = sheet(samples=1), sheet(samples=2)
    [(_, y)] = places(one, HR)
    np.testing.assert_array_equal(one[: y + CELL_PX], two[: y + CELL_PX])


def test_most_detailed_square_is_the_one_with_the_largest_sum_of_differences():
    image = np.random.default_rng(0).integers(0, 256, (17, 23, 3), dtype=np.uint8)

    def contrast(corner):
        grey = image[corner[0] : corner[0] + 6, corner[1] : corner[1] + 6].astype(float).mean(axis=2)
        return sum(
            abs(grey[y, x] - grey[y - 1, x]) + abs(grey[y, x] - grey[y, x - 1])
            for y in range(1, 6)
            for x in range(1, 6)
        )

    corners = [(top, left) for top in range(17 - 5) for left in range(23 - 5)]
    assert most_detailed_square(image, 6) == max(corners, key=contrast)


@pytest.mark.parametrize(
    ("mode", "size", "name"),
    [("RGB", (130, 97), "odd.png"), ("L", (500, 420), "grey.jpg"), ("RGBA", (97, 300), "alpha.png")],
)
def test_photographs_of_any_kind_and_size_give_a_sheet(tmp_path, monkeypatch, mode, size, name):
    Image.fromarray(skimage.data.astronaut()).resize(size).convert(mode).save(tmp_path / name)
    run(monkeypatch, "--input", tmp_path / name, "--output", tmp_path / "new/sheet.png", "--samples", "1")
    assert min(read_rgb(tmp_path / "new/sheet.png").shape[:2]) > 2 * CELL_PX


def test_sheet_repeats_with_its_seed_in_another_process_too(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "photo.png", HR)
    given = ("--input", "photo.png", "--samples", 1, "--seed")
    done = command("-m", "utils.visualization.degradation_sheet", *given, 5, "--output", "a.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "a.png" in done.stdout
    run(monkeypatch, *given, 5, "--output", "b.png")
    run(monkeypatch, *given, 6, "--output", "c.png")
    a, b, c = (read_rgb(tmp_path / name) for name in ("a.png", "b.png", "c.png"))
    np.testing.assert_array_equal(a, b)
    assert (b != c).any()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--input", "missing.png"), "cannot read image missing.png"),
        (("--input", "small.png"), "small.png is 64x300 and"),
        (("--set", "degradation.hr_px=64", "--set", "dataset.hr_patch_px=64"), "degradation.hr_px is 64"),
        (("--output", "photo.png"), "photo.png is the photograph itself"),
        (("--output", "sheet.jpg"), "ends in .png"),
        (("--output", "photo.png/sheet.png"), "cannot write"),
        (("--opt", RECIPE.with_name("train_rrdb_P+SeD.yml")), "has no degradation"),
        (("--opt", "missing.yml"), "missing.yml does not exist"),
        (("--set", "degradation.first.sigma_px=[3, 1]"), "degradation.first.sigma_px"),
        (("--samples", "0"), "--samples is 0"),
        (("--seed", "-1"), "--seed is -1"),
    ],
)
def test_mistakes_are_user_errors(tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "photo.png", HR)
    write_image(tmp_path / "small.png", np.zeros((64, 300, 3), np.uint8))
    with pytest.raises(UserError) as told:
        run(monkeypatch, "--input", "photo.png", "--output", "sheet.png", "--samples", "1", *arguments)
    assert sentence in str(told.value)
    assert not (tmp_path / "sheet.png").exists()
    np.testing.assert_array_equal(read_rgb(tmp_path / "photo.png"), HR)


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["degradation_sheet.py", *map(str, arguments)])
    assert degradation_sheet.main() == 0
