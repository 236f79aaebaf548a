"""Photographs with alpha, 16 bits and one channel are upscaled as their plain parts."""

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from scipy import ndimage

from sed_sr.data.photographs import Photograph, luminance, read_photograph
from sed_sr.models.generator import Generator
from sed_sr.models.rrdb import RRDBNet
from sed_sr.utils.evaluation.photographs import upscale_photographs
from sed_sr.utils.evaluation.upscaler import Upscaler, bicubic

PHOTO = skimage.data.coffee()[100:124, 100:130]
ROWS, COLUMNS = np.mgrid[:24, :30]
ALPHA = np.clip(60 * np.hypot(ROWS - 12, COLUMNS - 15) - 400, 0, 255).astype(np.uint8)  # a hole with an edge
SCALE = 2


class Sharper(Generator):
    """A generator whose results overshoot at edges and are 3 levels off in flat areas, as those of GANs are."""

    scale = SCALE

    def forward(self, lr):
        sr = lr.repeat_interleave(SCALE, dim=-1).repeat_interleave(SCALE, dim=-2)
        smooth = torch.nn.functional.avg_pool2d(sr, 5, stride=1, padding=2, count_include_pad=False)
        return sr + (sr - smooth) + 3 / 255 * torch.where(sr > 0.5, -1, 1)


def sharper():
    return Upscaler(Sharper(), torch.device("cpu"))


def upscaled(upscale, photograph):
    (sr,) = upscale_photographs(upscale, [photograph], print)
    return sr


@pytest.mark.parametrize("upscale", [bicubic(SCALE), sharper()], ids=["bicubic", "generator"])
@pytest.mark.parametrize("deep", [False, True])
def test_opaque_alpha_stays_opaque_and_changes_no_colour(upscale, deep):
    pixels = PHOTO.astype(np.uint16) * 257 if deep else PHOTO
    opaque = np.full(PHOTO.shape[:2], np.iinfo(pixels.dtype).max, pixels.dtype)
    plain, sr = upscaled(upscale, Photograph(pixels)), upscaled(upscale, Photograph(pixels, opaque))
    np.testing.assert_array_equal(sr.pixels, plain.pixels)
    assert (sr.alpha.dtype, sr.alpha.shape) == (pixels.dtype, sr.pixels.shape[:2])
    assert (sr.alpha == np.iinfo(pixels.dtype).max).all()
    assert plain.alpha is None


@pytest.mark.parametrize("upscale", [bicubic(SCALE), sharper()], ids=["bicubic", "generator"])
def test_opaque_and_transparent_areas_of_alpha_stay_so_and_the_edge_is_that_of_a_grey_image(upscale):
    sr = upscaled(upscale, Photograph(PHOTO, ALPHA)).alpha
    as_grey = luminance(upscale([ALPHA[..., None].repeat(3, axis=2)], print)[0])
    low, high = (
        limit(ALPHA, size=3, mode="nearest").repeat(SCALE, axis=0).repeat(SCALE, axis=1)
        for limit in (ndimage.minimum_filter, ndimage.maximum_filter)
    )
    np.testing.assert_array_equal(sr, np.clip(as_grey, low, high))
    assert (sr[high == 0] == 0).all()
    assert (sr[low == 255] == 255).all()
    assert (high == 0).any()
    assert (low == 255).any()


def test_hidden_colours_do_not_reach_visible_pixels(tmp_path):
    """Behind the hole, one file has black and one has white; after reading, both give the same image."""
    made = []
    for hidden in (0, 255):
        pixels = np.where(ALPHA[..., None] == 0, hidden, PHOTO).astype(np.uint8)
        Image.fromarray(np.dstack((pixels, ALPHA))).save(tmp_path / "a.png")
        made.append(upscaled(bicubic(SCALE), read_photograph(tmp_path / "a.png")).pixels)
    np.testing.assert_array_equal(*made)


def test_grey_photograph_is_the_luminance_of_the_rgb_one_and_the_profile_stays():
    grey = PHOTO[..., :1].repeat(3, axis=2)
    torch.manual_seed(0)
    upscale = Upscaler(RRDBNet(features=8, blocks=1, growth=4), torch.device("cpu"))
    sr = upscaled(upscale, Photograph(grey, grey=True, icc_profile=b"profile"))
    np.testing.assert_array_equal(sr.pixels, upscale([grey], print)[0])
    assert (sr.grey, sr.icc_profile) == (True, b"profile")


def test_photographs_of_a_batch_are_upscaled_together_and_each_keeps_its_own():
    calls = []

    def upscale(images, note):
        calls.append(len(images))
        return bicubic(SCALE)(images, note)

    opaque = np.full_like(ALPHA, 255)
    photographs = [Photograph(PHOTO), Photograph(PHOTO[::-1], ALPHA), Photograph(PHOTO, opaque, grey=True)]
    together = upscale_photographs(upscale, photographs, print)
    assert calls == [3, 1]  # opaque alpha costs nothing
    for sr, photograph in zip(together, photographs, strict=True):
        alone = upscaled(bicubic(SCALE), photograph)
        np.testing.assert_array_equal(sr.pixels, alone.pixels)
        assert (sr.alpha is None) == (photograph.alpha is None)
        assert sr.grey == photograph.grey
