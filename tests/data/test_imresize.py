import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sed_sr.data.imresize import MARGIN_PX, imresize, resize_matrix


def brute_force(image, scale):
    """The definition: an output pixel is a double sum over the mirrored plane, weighted by the continuous kernel."""

    def kernel(x):
        x = abs(x)
        if x <= 1:
            return (1.5 * x - 2.5) * x * x + 1
        return ((-0.5 * x + 2.5) * x - 4) * x + 2 if x < 2 else 0.0

    def mirrored(i, size):
        while not 0 <= i < size:
            i = -1 - i if i < 0 else 2 * size - 1 - i
        return i

    def weights(out, size):
        centre = (out + 0.5) / scale - 0.5
        shrink = min(scale, 1)
        reach = math.ceil(2 / shrink) + 1
        taps = range(math.floor(centre) - reach, math.floor(centre) + reach + 1)
        values = [kernel((centre - tap) * shrink) for tap in taps]
        return [(mirrored(tap, size), value / sum(values)) for tap, value in zip(taps, values, strict=True) if value]

    height, width = image.shape
    result = np.zeros((math.ceil(height * scale), math.ceil(width * scale)))
    for y, x in np.ndindex(result.shape):
        rows, columns = weights(y, height), weights(x, width)
        result[y, x] = sum(wy * wx * image[iy, ix] for iy, wy in rows for ix, wx in columns)
    return result


@settings(max_examples=30, deadline=None)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    scale=st.sampled_from([1 / 4, 1 / 3, 1 / 2, 0.7, 1.5, 2, 3, 4]),
    seed=st.integers(0, 1000),
)
def test_equals_the_double_sum_everywhere_borders_included(size, scale, seed):
    image = np.random.default_rng(seed).uniform(0, 1, size)
    np.testing.assert_allclose(imresize(image, scale=scale), brute_force(image, scale), atol=1e-12)


@pytest.mark.parametrize("scale", [1 / 4, 1 / 2, 2, 4])
def test_equals_pillow_inside(scale):
    # Pillow rounds and clips after each of its two passes: a level of difference, and no values that overshoot.
    image = np.random.default_rng(0).integers(64, 192, (64, 48, 3), dtype=np.uint8)
    ours = imresize(image, scale=scale).astype(int)
    pillow = np.asarray(Image.fromarray(image).resize(ours.shape[1::-1], Image.Resampling.BICUBIC))
    border = math.ceil(3 * max(1, scale))  # Pillow cuts the kernel at the border instead of mirroring the image
    assert np.abs(ours - pillow)[border:-border, border:-border].max() <= 1


@pytest.mark.parametrize("scale", [1 / 4, 1 / 3, 2, 4])
def test_a_constant_stays_and_a_ramp_stays_a_ramp(scale):
    assert (imresize(np.full((24, 36), 77, np.uint8), scale=scale) == 77).all()
    ramp = np.tile(np.arange(48.0), (24, 1))
    centres = (np.arange(48 * scale) + 0.5) / scale - 0.5
    inside = slice(math.ceil(3 * max(scale, 1)), -math.ceil(3 * max(scale, 1)))
    resized = imresize(ramp, scale=scale)
    np.testing.assert_allclose(resized[:, inside], np.broadcast_to(centres, resized.shape)[:, inside], atol=1e-12)


@pytest.mark.parametrize("scale", [1 / 8, 1 / 3, 1 / 2, 1.5])
def test_two_products_with_resize_matrices_resize_an_image(scale):
    image = np.random.default_rng(0).uniform(0, 255, (29, 40))
    rows, columns = (resize_matrix(side, scale=scale) for side in image.shape)
    np.testing.assert_allclose(rows @ image @ columns.T, imresize(image, scale=scale), atol=1e-10)


@pytest.mark.parametrize("times", [1, 2, 3, 4, 8])
def test_shrunk_pixels_do_not_depend_on_what_is_beyond_the_margin(times):
    matrix = resize_matrix(12 * times, scale=1 / times).reshape(12, 12, times)
    near = np.abs(np.subtract.outer(range(12), range(12))) <= MARGIN_PX
    assert not matrix[~near].any()


def test_scale_one_is_the_identity():
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    np.testing.assert_array_equal(imresize(image, scale=1), image)


def test_integers_are_rounded_once_from_the_float_result_and_clipped():
    image = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (32, 32, 3))  # overshoots both ends
    exact = imresize(image.astype(np.float64), scale=2)
    assert exact.min() < 0
    assert exact.max() > 255
    np.testing.assert_array_equal(imresize(image, scale=2), np.clip(np.floor(exact + 0.5), 0, 255).astype(np.uint8))


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([2, 3, 4, 8]))
def test_output_sides_are_rounded_up(height, width, scale):
    shrunk = imresize(np.zeros((height, width, 3), np.float32), scale=1 / scale)
    assert shrunk.shape == (-(-height // scale), -(-width // scale), 3)
    assert shrunk.dtype == np.float32
