"""Our JPEG against libjpeg, by way of Pillow."""

import io

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from sed_sr.data.degradation.jpeg import CHROMINANCE_STEPS, LUMINANCE_STEPS, jpeg, quantization_table
from sed_sr.data.tensors import to_array, to_float, to_tensor, to_uint8

PHOTOS = {
    "even": skimage.data.astronaut()[:256, :256],
    "odd": skimage.data.coffee()[:251, 10:193],
    "fur": skimage.data.chelsea()[40:225, 100:307],
}


def files_of(images, qualities):
    """What Pillow makes of images at qualities, with 4:2:0 chroma."""
    for image, quality in zip(images, qualities, strict=True):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling="4:2:0")
        yield Image.open(file)


def ours(image, quality):
    return to_array(to_uint8(jpeg(to_float(to_tensor(image))[None], torch.tensor([quality]))[0]))


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))


def test_tables_are_those_of_libjpeg_at_every_quality():
    qualities = range(1, 101)
    tables = [quantization_table(steps, torch.tensor(qualities)) for steps in (LUMINANCE_STEPS, CHROMINANCE_STEPS)]
    for place, file in enumerate(files_of([np.zeros((8, 8, 3), np.uint8)] * 100, qualities)):
        for number, table in enumerate(tables):
            assert table[place].flatten().tolist() == file.quantization[number], (qualities[place], number)


@pytest.mark.parametrize("photo", PHOTOS)
@pytest.mark.parametrize("quality", [30, 50, 75, 95])
def test_decoded_photographs_are_those_of_libjpeg(photo, quality):
    image = PHOTOS[photo]
    theirs = np.asarray(next(files_of([image], [quality])))
    coded = ours(image, quality)
    # What is left are coefficients in the middle of two steps, of which rounding elsewhere chooses the other one.
    assert psnr(coded, theirs) > 44
    assert abs(coded.astype(float) - theirs).mean() < 1
    assert abs((coded.astype(float) - theirs).mean()) < 0.2
    assert psnr(coded, image) == pytest.approx(psnr(theirs, image), abs=0.1)


def test_ringing_beyond_black_and_white_is_clipped_as_by_libjpeg():
    image = (skimage.data.coffee()[60:260, 150:400] > 128).astype(np.uint8) * 255  # of saturated colours alone
    theirs = np.asarray(next(files_of([image], [50])))
    assert psnr(ours(image, 50), theirs) > 42


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (7, 9), (8, 8), (15, 17), (16, 33), (30, 31)])
def test_images_of_any_size_equal_libjpeg_including_edges(size):
    rows, columns = np.mgrid[: size[0], : size[1]]
    image = np.stack([5 * rows, 5 * columns, 90 + 2 * rows + 2 * columns], axis=-1).astype(np.uint8)
    theirs = np.asarray(next(files_of([image], [90])))
    assert np.abs(ours(image, 90).astype(int) - theirs).max() <= 4


def test_each_sample_has_its_own_quality():
    images = to_float(torch.stack([to_tensor(PHOTOS["even"][:64, :48]), to_tensor(PHOTOS["even"][64:128, :48])]))
    quality = torch.tensor([30.0, 90.0])
    apart = [jpeg(images[i : i + 1], quality[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(jpeg(images, quality), torch.cat(apart), atol=1e-6, rtol=0)


def test_a_quality_between_two_whole_numbers_is_the_nearest():
    tables = quantization_table(LUMINANCE_STEPS, torch.tensor([61.4, 61.0, 60.6, 62.0]))
    assert torch.equal(tables[0], tables[1])
    assert torch.equal(tables[2], tables[1])
    assert not torch.equal(tables[3], tables[1])
