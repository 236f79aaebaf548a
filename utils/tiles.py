"""Upscaling an image piece by piece, where memory does not hold what a network computes for the whole of it."""

import torch
from torch import Tensor, nn

TILE_MULTIPLE_PX = 8  # SwinIR's window: attention windows lie in a tile where they lie in the whole image
OVERLAP_PX = 32  # changes the SR of a photograph by up to 0.003/255 (SwinIR-M, random weights); 16 by up to 0.4/255


def upscale_in_tiles(
    generator: nn.Module, lr: Tensor, *, scale: int, tile_px: int, overlap_px: int = OVERLAP_PX
) -> Tensor:
    """Upscale an image in overlapping tiles, of each of which the inner part is kept.

    Where the receptive field of the generator is no wider than the overlap, the result is that of the whole image.

    Args:
        generator: (1, 3, h, w) -> (1, 3, scale * h, scale * w).
        lr: (1, 3, H, W), on the generator's device.
        tile_px: longest side of what the generator gets at once, in LR pixels, a multiple of 8.
        overlap_px: how much neighbouring tiles have in common (the last ones more), in LR pixels, a multiple of 8. Each
            of them is used up to the middle of it.

    Returns:
        (1, 3, scale * H, scale * W) on the CPU: the device holds one tile at a time.
    """
    assert tile_px % TILE_MULTIPLE_PX == overlap_px % TILE_MULTIPLE_PX == 0, (tile_px, overlap_px)
    assert 0 <= overlap_px < tile_px, (tile_px, overlap_px)
    height, width = lr.shape[-2:]
    sr = torch.empty(*lr.shape[:-2], scale * height, scale * width, dtype=lr.dtype, device="cpu")
    for top, bottom, first_row, last_row in _spans(height, tile_px, overlap_px):
        for left, right, first_column, last_column in _spans(width, tile_px, overlap_px):
            tile = generator(lr[..., top:bottom, left:right])
            tile = tile[..., scale * (first_row - top) :, scale * (first_column - left) :]
            kept = sr[..., scale * first_row : scale * last_row, scale * first_column : scale * last_column]
            kept.copy_(tile[..., : kept.shape[-2], : kept.shape[-1]])
    return sr


def _spans(length_px: int, tile_px: int, overlap_px: int) -> list[tuple[int, int, int, int]]:
    """Where the tiles lie along a side: (start, stop, first pixel used, end of those used) of each, in LR pixels."""
    last = _round_up(max(length_px - tile_px, 0))  # shifted inwards, so that it ends where the image does
    starts = [*range(0, last, tile_px - overlap_px), last]
    stops = [min(start + tile_px, length_px) for start in starts]
    seams = [(stop + start) // 2 for stop, start in zip(stops, starts[1:], strict=False)]
    return list(zip(starts, stops, [0, *seams], [*seams, length_px], strict=True))


def halved(side_px: int) -> int:
    """Half of a side, rounded up to one that a tile may have."""
    return _round_up(-(-side_px // 2))


def _round_up(length_px: int) -> int:
    return -(-length_px // TILE_MULTIPLE_PX) * TILE_MULTIPLE_PX
