"""The picture of details: which detail is shown, and where each image is."""

import numpy as np
from PIL import Image

from sed_sr.utils.visualization.comparison import busiest_detail, comparison

SIDE_PX = 32


def test_detail_with_the_most_contrast_is_shown():
    image = np.zeros((3 * SIDE_PX, 4 * SIDE_PX, 3), np.uint8)
    top, left = SIDE_PX, 2 * SIDE_PX - 12
    image[top : top + SIDE_PX : 2, left : left + SIDE_PX] = 255
    rows, columns = busiest_detail(image, SIDE_PX, step_px=4)
    assert abs(rows.start - top) <= 4
    assert abs(columns.start - left) <= 4
    assert image[rows, columns].shape == (SIDE_PX, SIDE_PX, 3)


def test_image_of_the_size_of_the_detail_is_shown_whole():
    image = np.random.default_rng(0).integers(256, size=(SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
    assert np.array_equal(image[busiest_detail(image, SIDE_PX, step_px=4)], image)


def test_images_are_enlarged_in_the_order_of_the_titles_below_them():
    rng = np.random.default_rng(0)
    rows = [[rng.integers(255, size=(10, 12, 3), dtype=np.uint8) for _ in range(3)] for _ in range(2)]
    picture = comparison(["LR", "SR", "HR"], rows, zoom=2)
    columns = np.flatnonzero((picture[-1] != 255).any(axis=1))  # of the images: between them it is white
    assert np.array_equal(np.split(columns, 3)[1] - columns[0], np.arange(24) + 24 + 8)
    bottom = [picture[-20:, part[0] : part[-1] + 1] for part in np.split(columns, 3)]
    for found, image in zip(bottom, rows[1], strict=True):
        enlarged = Image.fromarray(image).resize((24, 20), Image.Resampling.NEAREST)
        assert np.array_equal(found, np.array(enlarged))


def test_titles_of_two_lines_have_more_room():
    image = np.zeros((10, 12, 3), np.uint8)
    one, two = (comparison([title], [[image]], zoom=1) for title in ("SeD", "SeD,\nagain"))
    assert len(two) > len(one)
    assert (two[: len(two) - 18] < 128).any()  # dark pixels: text
