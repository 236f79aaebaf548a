"""Pictures of the views of a discriminator show each value at the pixels that it belongs to."""

import numpy as np
import pytest
import torch
from torch import nn

from sed_sr.models.discriminators import PatchDiscriminator, UNetDiscriminator
from sed_sr.models.semantic_extractor import SemanticExtractor
from sed_sr.utils.visualization.discriminator_views import distinct_points, respond, shown_part
from sed_sr.utils.visualization.figure import VIRIDIS, apply_colour_map
from sed_sr.utils.visualization.pictures import (
    attention_picture,
    discriminator_pictures,
    mark_point,
    real_picture,
    stretch,
)


class Colours(nn.Module):
    """An extractor whose semantics are the mean colours of blocks of 16 pixels, each in 64 channels."""

    channels, stride = 64, 16

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(image, 16).repeat(1, 22, 1, 1)[:, :64]


def photo(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def semantic_discriminator() -> UNetDiscriminator:
    torch.manual_seed(0)
    return UNetDiscriminator(semantic_channels=64, features=8)


@pytest.mark.parametrize("kind", [PatchDiscriminator, UNetDiscriminator])
def test_each_value_is_drawn_on_the_pixels_that_influence_it(kind):
    """The gradient of a logit is non-zero in its receptive field, whose center is where the logit is drawn."""
    torch.manual_seed(0)
    network = kind(semantic_channels=None, features=8).eval()
    image = torch.full((1, 3, 96, 128), 0.5, requires_grad=True)
    logits = network(image)[0, 0]
    rows, columns = logits.shape
    for row, column in ((rows // 2, columns // 2), (rows // 3, columns // 4)):
        chosen = np.zeros((rows, columns, 1))
        chosen[row, column] = 1
        drawn = np.argwhere(stretch(chosen, (96, 128))[..., 0])
        (influence,) = torch.autograd.grad(logits[row, column], image, retain_graph=True)
        reached = np.argwhere(influence[0].abs().sum(dim=0).numpy() > 0)
        for axis in (0, 1):
            assert np.ptp(drawn[:, axis]) + 1 == (1 if kind is UNetDiscriminator else 8)
            middle_px = (reached[:, axis].min() + reached[:, axis].max()) / 2
            # the receptive field of U-Net is aligned to a grid of 8 pixels
            assert abs(drawn[:, axis].mean() - middle_px) <= (4 if kind is UNetDiscriminator else 0)


@pytest.mark.parametrize("cells", [1, 3, 7, 30, 31, 32, 64, 256])
def test_map_covers_the_image_evenly_and_in_order(cells):
    drawn = stretch(np.arange(cells)[:, None, None].repeat(16, axis=1), (256, 256))[:, 0, 0]
    assert (np.diff(drawn) >= 0).all()
    counts = np.bincount(drawn, minlength=cells)
    assert counts[1:-1].max(initial=0) - counts[1:-1].min(initial=256) <= 1
    assert np.abs(counts - counts[::-1]).max() <= 1


def test_real_is_yellow_and_fake_is_blue():
    blue, yellow = apply_colour_map(np.array([[0.0, 1.0]]), VIRIDIS)[0]
    drawn = real_picture(np.array([[0.0, 1.0]]), (16, 32))
    assert (drawn[:, :16] == blue).all()
    assert (drawn[:, 16:] == yellow).all()


def test_attention_is_brightest_where_it_is_highest_and_the_point_is_marked():
    attention = np.full((8, 8), 0.1)
    attention[2, 6] = 0.9
    image = np.full((64, 64, 3), 128, np.uint8)
    drawn = attention_picture(image, attention, (20, 50))
    bright = drawn.sum(axis=2)
    ys, xs = np.nonzero(bright[:32] == bright[:32].max())
    assert (ys.min(), ys.max(), xs.min(), xs.max()) == (16, 23, 48, 55)
    ring = np.argwhere((mark_point(image, (20, 50)) != 128).any(axis=2))
    assert ring.mean(axis=0) == pytest.approx([50, 20], abs=0.5)
    assert (mark_point(image, (20, 50))[50, 20] == 128).all()  # the point itself stays visible


def test_pictures_have_the_size_of_the_image_and_show_the_views_in_its_center():
    network, hr, sr = semantic_discriminator(), photo(71, 90), photo(71, 90) // 2
    seen = discriminator_pictures(network, Colours(), hr=hr, sr={"HR": sr})  # "HR" is a valid label of SR
    rows, columns = shown_part(71, 90)
    real, fake = (torch.from_numpy(image[rows, columns]).permute(2, 0, 1)[None] / 255 for image in (hr, sr))
    semantic = Colours()(real)
    expected = real_picture(respond(network, fake, semantic)[0].numpy(), (64, 80))
    assert np.abs(seen.real_sr["HR"][rows, columns].astype(int) - expected).max() <= 1
    (point,) = distinct_points(semantic, (64, 80), 1)
    attention = respond(network, real, semantic, [point])[1]["fusion1"][0].numpy()
    expected = attention_picture(hr[rows, columns], attention, point)
    assert np.abs(seen.attention[rows, columns].astype(int) - expected).max() <= 1
    assert not np.array_equal(seen.real_hr, seen.real_sr["HR"])
    for picture in (seen.semantics, seen.attention, seen.real_hr):
        assert picture.shape == hr.shape
        assert np.array_equal(picture[0], hr[0] // 4)


def test_random_clip_distinguishes_two_areas():
    """With the real extractor, for an image whose size is no multiple of its stride."""
    extractor = SemanticExtractor(state=None)
    hr = photo(70, 100) // 8
    hr[:, 50:] += 200
    network = PatchDiscriminator(features=8)
    seen = discriminator_pictures(network, extractor, hr=hr, sr={})
    assert (seen.semantics[35, 20] != seen.semantics[35, 80]).any()
