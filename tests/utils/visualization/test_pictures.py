"""Pictures of what a discriminator sees lie on the pixels that they are of."""

import numpy as np
import pytest
import torch
from torch import nn

from sed_sr.models.discriminators import PatchDiscriminator, UNetDiscriminator
from sed_sr.models.semantic_extractor import SemanticExtractor
from sed_sr.options.errors import UserError
from sed_sr.utils.visualization.discriminator_file import TrainedDiscriminator
from sed_sr.utils.visualization.discriminator_views import look, telling_points
from sed_sr.utils.visualization.figure import VIRIDIS
from sed_sr.utils.visualization.pictures import (
    attention_picture,
    marked,
    middle,
    real_picture,
    report_extras,
    spread,
    views,
)


class Colours(nn.Module):
    """An extractor whose semantics are the mean colours of blocks of 16 pixels, each in 64 channels."""

    channels, stride = 64, 16

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(image, 16).repeat(1, 22, 1, 1)[:, :64]


def photo(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def judge(fusion: str | None = "cross-attention", kind: type[nn.Module] = UNetDiscriminator) -> TrainedDiscriminator:
    torch.manual_seed(0)
    if fusion is None:
        return TrainedDiscriminator(kind(semantic_channels=None, features=8), None, "a plain one")
    return TrainedDiscriminator(kind(semantic_channels=64, features=8, fusion=fusion), Colours(), "a semantic one")


@pytest.mark.parametrize(("height", "width"), [(32, 32), (47, 100), (1356, 2040), (40, 60_000), (5000, 5000)])
def test_middle_is_the_largest_part_that_a_discriminator_takes(height, width):
    rows, columns = middle(height, width)
    sides = [part.stop - part.start for part in (rows, columns)]
    for part, side, whole in zip((rows, columns), sides, (height, width), strict=True):
        assert side % 16 == 0
        assert side >= 32
        assert abs(part.start - (whole - part.stop)) <= 1
    assert sides[0] * sides[1] <= 2**20 + 32 * 60_000 * (height == 40)
    if height * width <= 2**20:
        assert all(whole - side < 16 for side, whole in zip(sides, (height, width), strict=True))
    elif height > 40:
        assert sides[0] * sides[1] > 0.95 * 2**20
        assert sides[0] / sides[1] == pytest.approx(height / width, rel=0.05)


def test_image_that_no_discriminator_takes_is_refused():
    with pytest.raises(UserError, match=r"31x500 pixels.*32x32"):
        middle(500, 31)


@pytest.mark.parametrize("kind", [PatchDiscriminator, UNetDiscriminator])
def test_each_value_lies_on_the_pixels_that_it_judges(kind):
    """Where D is asked how a logit depends on the pixels, the middle of them is where the logit is drawn."""
    torch.manual_seed(0)
    network = kind(semantic_channels=None, features=8).eval()
    image = torch.full((1, 3, 96, 128), 0.5, requires_grad=True)
    logits = network(image)[0, 0]
    rows, columns = logits.shape
    for row, column in ((rows // 2, columns // 2), (rows // 3, columns // 4)):
        chosen = np.zeros((rows, columns, 1))
        chosen[row, column] = 1
        drawn = np.argwhere(spread(chosen, (96, 128))[..., 0])
        (influence,) = torch.autograd.grad(logits[row, column], image, retain_graph=True)
        reached = np.argwhere(influence[0].abs().sum(dim=0).numpy() > 0)
        for axis in (0, 1):
            assert np.ptp(drawn[:, axis]) + 1 == (1 if kind is UNetDiscriminator else 8)
            middle_px = (reached[:, axis].min() + reached[:, axis].max()) / 2
            # U-Net's field of view lies on a grid of 8 pixels
            assert abs(drawn[:, axis].mean() - middle_px) <= (4 if kind is UNetDiscriminator else 0)


@pytest.mark.parametrize("cells", [1, 3, 7, 30, 31, 32, 64, 256])
def test_a_map_covers_the_image_evenly_and_in_order(cells):
    drawn = spread(np.arange(cells)[:, None, None].repeat(16, axis=1), (256, 256))[:, 0, 0]
    assert (np.diff(drawn) >= 0).all()
    counts = np.bincount(drawn, minlength=cells)
    assert counts[1:-1].max(initial=0) - counts[1:-1].min(initial=256) <= 1
    assert np.abs(counts - counts[::-1]).max() <= 1


def test_real_is_yellow_and_fake_is_blue():
    drawn = real_picture(torch.tensor([[0.0, 1.0]]), (16, 32))
    assert (drawn[:, :16] == VIRIDIS[0]).all()
    assert (drawn[:, 16:] == VIRIDIS[-1]).all()


def test_attention_is_brightest_where_it_is_largest_and_the_point_is_marked():
    attention = torch.full((8, 8), 0.1)
    attention[2, 6] = 0.9
    image = np.full((64, 64, 3), 128, np.uint8)
    drawn = attention_picture(image, attention, (20, 50))
    bright = drawn.sum(axis=2)
    ys, xs = np.nonzero(bright[:32] == bright[:32].max())
    assert (ys.min(), ys.max(), xs.min(), xs.max()) == (16, 23, 48, 55)
    ring = np.argwhere((marked(image, (20, 50)) != 128).any(axis=2))
    assert ring.mean(axis=0) == pytest.approx([50, 20], abs=0.5)
    assert (marked(image, (20, 50))[50, 20] == 128).all()  # what is marked is not covered


def test_views_are_as_large_as_the_image_and_true_in_the_middle():
    ours, hr, sr = judge(), photo(71, 90), photo(71, 90) // 2
    seen = views(ours.discriminator, ours.extractor, hr=hr, sr={"HR": sr})  # a label may be called anything
    rows, columns = middle(71, 90)
    real, fake = (torch.from_numpy(image[rows, columns]).permute(2, 0, 1)[None] / 255 for image in (hr, sr))
    semantic = Colours()(real)
    expected = real_picture(look(ours.discriminator, fake, semantic).real, (64, 80))
    assert np.abs(seen.real_sr["HR"][rows, columns].astype(int) - expected).max() <= 1
    (point,) = telling_points(semantic, (64, 80), 1)
    attention = look(ours.discriminator, real, semantic, [point]).attention["fusion1"][0]
    expected = attention_picture(hr[rows, columns], attention, point)
    assert np.abs(seen.attention[rows, columns].astype(int) - expected).max() <= 1
    assert not np.array_equal(seen.real_hr, seen.real_sr["HR"])
    for picture in (seen.semantics, seen.attention, seen.real_hr):
        assert picture.shape == hr.shape
        assert np.array_equal(picture[0], hr[0] // 4)


@pytest.mark.parametrize(
    ("fusion", "kinds"),
    [("cross-attention", ["semantics", "attention"]), ("concatenation", ["semantics"]), (None, [])],
)
def test_report_has_a_picture_for_each_title(fusion, kinds):
    extras = report_extras(judge(fusion), ["a", "b"])
    assert list(extras.titles) == [*kinds, "real/fake: HR", "real/fake: a", "real/fake: b"]
    drawn = extras.draw(photo(64, 64), [None, photo(68, 64)])
    assert [picture is None for picture in drawn] == [*(False for _ in kinds), False, True, False]
    assert extras.draw(photo(64, 31), [photo(64, 31)] * 2) == [None] * len(extras.titles)


def test_random_clip_tells_places_apart():
    """Through the extractor itself, at a size that is no multiple of its stride."""
    extractor = SemanticExtractor(state=None)
    hr = photo(70, 100) // 8
    hr[:, 50:] += 200
    network = PatchDiscriminator(features=8)
    seen = views(network, extractor, hr=hr, sr={})
    assert (seen.semantics[35, 20] != seen.semantics[35, 80]).any()
