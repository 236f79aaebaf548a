"""Tiles: the image of tiles is the image of the whole, for any size, and no more than a tile is computed at once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models.swinir import SwinIR
from utils.tiles import upscale_in_tiles

SCALE = 2
DEPTH = 4  # 3x3 convolutions on LR pixels; each pixel of the result depends on that many LR pixels on either side


class Watched(nn.Module):
    """A generator that remembers the sizes of its inputs."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network, self.sizes = network, []

    def forward(self, lr):
        self.sizes.append(lr.shape[-2:])
        return self.network(lr)


@pytest.fixture(scope="module")
def convolutions():
    torch.manual_seed(0)
    hidden = [layer for _ in range(DEPTH - 2) for layer in (nn.Conv2d(4, 4, 3, padding=1), nn.Tanh())]
    first, last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3 * SCALE**2, 3, padding=1)
    return nn.Sequential(first, nn.Tanh(), *hidden, last, nn.PixelShuffle(SCALE)).eval()


sides = st.integers(1, 100)
tile_sides = st.sampled_from([16, 24, 32, 64])
overlaps = st.sampled_from([8, 16, 24])


@settings(max_examples=60, deadline=None)
@given(height=sides, width=sides, tile_px=tile_sides, overlap_px=overlaps)
@torch.no_grad()
def test_tiles_make_the_image_of_the_whole_when_the_overlap_covers_the_receptive_field(
    convolutions, height, width, tile_px, overlap_px
):
    if overlap_px >= tile_px:
        overlap_px = 8
    lr = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(height))
    watched = Watched(convolutions)
    tiled = upscale_in_tiles(watched, lr, scale=SCALE, tile_px=tile_px, overlap_px=overlap_px)
    torch.testing.assert_close(tiled, convolutions(lr), atol=1e-6, rtol=0)
    assert all(max(size) <= tile_px for size in watched.sizes)
    if max(height, width) <= tile_px:
        assert watched.sizes == [(height, width)]


@torch.no_grad()
def test_a_narrower_overlap_shows_at_the_seams_alone(convolutions):
    """The property above is none of the tiles' own: it ends where the receptive field does."""
    lr = torch.rand(1, 3, 16, 48, generator=torch.Generator().manual_seed(0))
    tiled = upscale_in_tiles(convolutions, lr, scale=SCALE, tile_px=16, overlap_px=0)
    wrong = ((tiled - convolutions(lr)).abs() > 1e-6).any(dim=1)[0].any(dim=0).nonzero().flatten() // SCALE
    assert set(wrong.tolist()) == {x for seam in (16, 32) for x in range(seam - DEPTH, seam + DEPTH)}


@torch.no_grad()
def test_attention_windows_lie_in_a_tile_where_they_lie_in_the_whole_image():
    """Without shifts, a pixel of SwinIR sees its own window and what its convolutions reach."""
    torch.manual_seed(0)
    swinir = SwinIR(embed_dim=12, depths=(1,), heads=(2,), window=8).eval()
    lr = torch.rand(1, 3, 43, 75, generator=torch.Generator().manual_seed(0))
    tiled = upscale_in_tiles(swinir, lr, scale=4, tile_px=40, overlap_px=32)
    torch.testing.assert_close(tiled, swinir(lr), atol=1e-5, rtol=0)
