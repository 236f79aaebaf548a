"""Upscaling images in overlapping tiles, to limit the memory that the network takes."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sed_sr.data.tensors import to_integers

TILE_MULTIPLE_PX = 8  # SwinIR's window, so that attention windows are the same in a tile and in the whole image
OVERLAP_PX = 32  # changes no SR value by more than 1 of 255, where 8 changes some by 19 (benchmarks/RESULTS.md)


@dataclass(frozen=True)
class Span:
    """A tile along one side of an image, in LR pixels: [start, stop), between the seams [first, last)."""

    start: int
    stop: int
    first: int
    last: int

    def used(self, scale: int, ramp_px: int, *, side_px: int) -> tuple[int, int]:
        """[first, last) of the part that is used, in SR pixels: up to the seams, and half a ramp beyond."""
        half_px = ramp_px // 2
        return (
            scale * self.first - (half_px if self.first > 0 else 0),
            scale * self.last + (half_px if self.last < side_px else 0),
        )


def spans(length_px: int, tile_px: int, overlap_px: int) -> list[Span]:
    """The tiles along a side. Neighbours overlap by `overlap_px` (the last two by more); seams are in the middle."""
    assert tile_px % TILE_MULTIPLE_PX == overlap_px % TILE_MULTIPLE_PX == 0, (tile_px, overlap_px)
    assert 0 < 2 * overlap_px <= tile_px, (tile_px, overlap_px)  # the two ramps of a tile must not overlap
    last = round_up(max(length_px - tile_px, 0))  # the last tile is shifted to end at the border
    starts = [*range(0, last, tile_px - overlap_px), last]
    stops = [min(start + tile_px, length_px) for start in starts]
    seams = [(stop + start) // 2 for stop, start in zip(stops, starts[1:], strict=False)]
    return [Span(*span) for span in zip(starts, stops, [0, *seams], [*seams, length_px], strict=True)]


@torch.inference_mode()
def upscale_in_tiles(
    upscale_tile: Callable[[np.ndarray], Tensor],
    images: list[np.ndarray],
    *,
    scale: int,
    tile_px: int,
    overlap_px: int = OVERLAP_PX,
) -> list[np.ndarray]:
    """Upscale images of one size in overlapping tiles, one tile (the same of each image) at a time.

    Neighbouring tiles are blended by linear ramps over the middle quarter of their overlap, before the only rounding.
    Pixels closer to the edge of a tile than 3/8 of the overlap are not used: if the receptive field of a generator
    reaches no further than this, the result equals that of the whole image.

    Only the current tile, its ramp on the right and the ramps below one row of tiles are kept in floating point.

    Args:
        upscale_tile: (N, h, w, 3) uint8 or uint16 RGB -> (N, scale * h, scale * w, 3) float32 on the CPU, nominally
            in [0, 1]; the result is modified in place.
        images: (H, W, 3) uint8 or uint16 RGB each, all of one type.
        tile_px: longest side of a tile, in LR pixels, a multiple of 8, at least two overlaps.
        overlap_px: overlap of neighbouring tiles (the last two may overlap by more), in LR pixels, a multiple of 8.

    Returns:
        (scale * H, scale * W, 3) RGB of the same type each.
    """
    height, width = images[0].shape[:2]
    dtype = torch.from_numpy(images[0]).dtype
    rows, columns = (spans(side_px, tile_px, overlap_px) for side_px in (height, width))
    ramp_px = scale * (overlap_px // 4)  # in SR pixels
    rising = (torch.arange(ramp_px, dtype=torch.float32)[:, None] + 0.5) / ramp_px  # the weight of the later tile
    results = [np.empty((scale * height, scale * width, 3), image.dtype) for image in images]
    ramp_down = torch.empty(len(images), ramp_px, scale * width, 3)  # below the previous row of tiles
    for row in rows:
        ramp_right = torch.empty(0)  # of the previous tile in the row
        for column in columns:
            tile = upscale_tile(np.stack([image[row.start : row.stop, column.start : column.stop] for image in images]))
            top, bottom = row.used(scale, ramp_px, side_px=height)
            left, right = column.used(scale, ramp_px, side_px=width)
            tile = tile[:, top - scale * row.start : bottom - scale * row.start]
            tile = tile[:, :, left - scale * column.start : right - scale * column.start]
            if column.first > 0:
                tile[:, :, :ramp_px] = ramp_right.lerp(tile[:, :, :ramp_px], rising)
            if column.last < width:
                ramp_right, tile = (
                    tile[:, :, -ramp_px:].clone(),
                    tile[:, :, :-ramp_px],
                )  # a view would keep the tile
                right -= ramp_px
            if row.first > 0:
                tile[:, :ramp_px] = ramp_down[:, :, left:right].lerp(tile[:, :ramp_px], rising[:, None])
            if row.last < height:
                ramp_down[:, :, left:right], tile = tile[:, -ramp_px:], tile[:, :-ramp_px]
                bottom -= ramp_px
            for result, piece in zip(results, to_integers(tile, dtype).numpy(), strict=True):
                result[top:bottom, left:right] = piece
            del tile, piece  # frees the memory before the next tile
    return results


def halved(side_px: int) -> int:
    """Half of a side, rounded up to a valid tile size."""
    return round_up(-(-side_px // 2))


def round_up(length_px: int) -> int:
    """A length, rounded up to a valid tile size."""
    return -(-length_px // TILE_MULTIPLE_PX) * TILE_MULTIPLE_PX
