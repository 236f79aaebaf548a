"""Tiles give the same result as the whole image, and only one tile is computed at once."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sed_sr.data.tensors import to_float, to_uint8
from sed_sr.models.rrdb import RRDBNet
from sed_sr.models.swinir import SwinIR
from sed_sr.utils.evaluation.tiles import spans, upscale_in_tiles

SCALE = 2
DEPTH = 6  # 3x3 convolutions on LR pixels; each pixel of the result depends on that many LR pixels on either side


class OfTile:
    """The function that upscales a tile by a network; records the sizes of the tiles."""

    def __init__(self, network):
        self.network, self.sizes = network, []

    @torch.no_grad()
    def __call__(self, lr):
        self.sizes.append(lr.shape[1:3])
        return self.network(to_float(torch.from_numpy(lr)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def image_of(height, width):
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def convolutions():
    torch.manual_seed(0)
    hidden = [layer for _ in range(DEPTH - 2) for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())]
    first, last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3 * SCALE**2, 3, padding=1)
    network = nn.Sequential(first, nn.ReLU(), *hidden, last, nn.PixelShuffle(SCALE)).eval()
    for convolution in (*network[:-2:2], last):
        nn.init.orthogonal_(convolution.weight, gain=3)  # so that the edge of the receptive field counts too
    last.bias.data.fill_(0.5)
    return network


sides = st.integers(1, 130)
tile_sides = st.sampled_from([32, 40, 64, 128])


@settings(max_examples=60, deadline=None)
@given(height=sides, width=sides, tile_px=tile_sides, overlap_px=st.sampled_from([16, 24]), count=st.integers(1, 2))
def test_tiles_equal_the_whole_image_if_the_overlap_covers_the_receptive_field(
    convolutions, height, width, tile_px, overlap_px, count
):
    assert 3 / 8 * overlap_px >= DEPTH
    tile_px = max(tile_px, 2 * overlap_px)
    images = [image_of(height + 200 * number, width)[:height] for number in range(count)]
    of_tile = OfTile(convolutions)
    tiled = upscale_in_tiles(of_tile, images, scale=SCALE, tile_px=tile_px, overlap_px=overlap_px)
    whole = to_uint8(OfTile(convolutions)(np.stack(images))).numpy()
    assert np.abs(np.stack(tiled).astype(int) - whole).max() <= 1  # rounded the other way, at most
    assert (np.stack(tiled) != whole).mean() < 0.001
    assert all(max(size) <= tile_px for size in of_tile.sizes)
    if max(height, width) <= tile_px:
        assert of_tile.sizes == [(height, width)]


def test_narrower_overlap_changes_pixels_at_the_seams_only(convolutions):
    """The previous property depends on the receptive field."""
    lr = image_of(16, 72)
    (tiled,) = upscale_in_tiles(OfTile(convolutions), [lr], scale=SCALE, tile_px=32, overlap_px=8)
    whole = to_uint8(OfTile(convolutions)(lr[None])[0]).numpy()
    wrong = set(((tiled != whole).any(axis=(0, 2)).nonzero()[0] // SCALE).tolist())
    affected = {x for start in (24, 48) for x in range(start - 1, start + DEPTH)}  # too near to where a tile begins
    affected |= {x for stop in (32, 56) for x in range(stop - DEPTH, stop + 1)}  # or ends
    assert wrong
    assert wrong <= affected


@settings(max_examples=60, deadline=None)
@given(height=sides, width=sides, tile_px=tile_sides, overlap_px=st.sampled_from([8, 16]))
def test_weights_of_the_blend_add_up_to_one(height, width, tile_px, overlap_px):
    lr = image_of(height, width)
    nearest = OfTile(nn.Upsample(scale_factor=SCALE))
    (tiled,) = upscale_in_tiles(nearest, [lr], scale=SCALE, tile_px=tile_px, overlap_px=overlap_px)
    assert (tiled == lr.repeat(SCALE, axis=0).repeat(SCALE, axis=1)).all()


def test_differing_tiles_are_blended_by_a_ramp():
    """Tiles of a constant grey: the step between two becomes a ramp over the middle quarter of their overlap."""
    greys = iter((0.2, 0.8))
    (tiled,) = upscale_in_tiles(
        lambda lr: torch.full((1, lr.shape[1], lr.shape[2], 3), next(greys)),
        [image_of(64, 96)],
        scale=1,
        tile_px=64,
        overlap_px=32,
    )
    row = tiled[0, :, 0] / 255
    assert (tiled == tiled[:1]).all()
    np.testing.assert_allclose(row[:44], 0.2, atol=0.002)  # the overlap is 32 to 64, its middle quarter 44 to 52
    np.testing.assert_allclose(row[44:52], 0.2 + 0.6 * (np.arange(8) + 0.5) / 8, atol=0.002)
    np.testing.assert_allclose(row[52:], 0.8, atol=0.002)


@given(st.integers(1, 400), tile_sides, st.sampled_from([8, 16]))
def test_tiles_cover_a_side_and_start_at_attention_windows(length, tile_px, overlap_px):
    tiles = spans(length, tile_px, overlap_px)
    assert [x for tile in tiles for x in range(tile.first, tile.last)] == list(range(length))
    assert all(tile.start % 8 == 0 and tile.stop - tile.start <= tile_px for tile in tiles)
    assert all(a.stop - b.start >= overlap_px for a, b in pairwise(tiles))


def test_attention_windows_are_the_same_in_a_tile_and_in_the_whole_image():
    """Without shifts, a pixel of SwinIR depends on its window and on what the convolutions reach."""
    torch.manual_seed(0)
    swinir = OfTile(SwinIR(embed_dim=12, depths=(1,), heads=(2,), window=8).eval())
    lr = image_of(16, 115)
    (tiled,) = upscale_in_tiles(swinir, [lr], scale=4, tile_px=80, overlap_px=40)
    assert np.abs(tiled.astype(int) - to_uint8(swinir(lr[None])[0]).numpy()).max() <= 1


def test_tiles_of_an_rrdb_with_a_wider_receptive_field_differ_by_one_level_at_most():
    torch.manual_seed(0)
    rrdb = OfTile(RRDBNet(features=16, blocks=2, growth=8).eval())
    lr = image_of(101, 83)
    made = rrdb(lr[None])
    rrdb.network.conv_last.weight.data *= 0.2 / made.std()  # to the contrast of an image
    rrdb.network.conv_last.bias.data += 0.5 - made.mean() * 0.2 / made.std()
    (tiled,) = upscale_in_tiles(rrdb, [lr], scale=4, tile_px=64)
    whole = to_uint8(rrdb(lr[None])[0]).numpy()
    assert whole.std() > 20
    assert np.abs(tiled.astype(int) - whole).max() <= 1
