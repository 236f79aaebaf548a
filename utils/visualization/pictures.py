"""Pictures of what a discriminator sees in an image: the semantics it is given, where it attends, what it believes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sed_sr.data.tensors import to_array, to_float, to_tensor, to_uint8
from sed_sr.options.errors import UserError
from sed_sr.utils.report.html_page import Extras
from sed_sr.utils.runtime.memory import unless_out_of_memory
from sed_sr.utils.visualization.discriminator_file import Judge
from sed_sr.utils.visualization.discriminator_views import (
    Point,
    attending_blocks,
    look,
    principal_colours,
    telling_points,
)
from sed_sr.utils.visualization.figure import INFERNO, VIRIDIS, coloured

MULTIPLE_PX = 16  # D takes sides that are multiples of this,
MIN_PX = 32  # and at least as large
MAX_PX = 2**20  # of an image at once: a U-Net keeps 64 features for each
HEAT = 0.6  # share of the attention's colours over the grey image
NOTES = {
    "semantics": "Semantics: the features that it is given, their main directions as colours.",
    "attention": "Attention: where its finest fusion block looks for the marked place, bright where most.",
    "real/fake": "Real/fake: what it takes for real is yellow, what for fake is blue. A dark rim was not shown to it.",
}


def middle(height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of the part of an image that a discriminator is shown: the largest in the middle that it takes.

    Its sides are multiples of 16; it has 2^20 pixels at most, or hardly more, in about its shape. (It is cut and not
    shrunk, because a discriminator knows images at one scale.)

    Raises UserError for images of less than 32 pixels.
    """
    if min(height, width) < MIN_PX:
        raise UserError(f"the image has {width}x{height} pixels; a discriminator needs at least {MIN_PX}x{MIN_PX}")
    factor = min(1, math.sqrt(MAX_PX / (height * width)))
    sides = [max(MIN_PX, int(side * factor) // MULTIPLE_PX * MULTIPLE_PX) for side in (height, width)]
    starts = [(whole - side) // 2 for whole, side in zip((height, width), sides, strict=True)]
    rows, columns = (slice(start, start + side) for start, side in zip(starts, sides, strict=True))
    return rows, columns


def to_batch(rgb: np.ndarray, device: torch.device) -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, H, W) float in [0, 1]."""
    return to_float(to_tensor(rgb)[None].to(device))


def spread(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map of a discriminator, (h, w, C), over an image of this size (height, width): (H, W, C).

    Each value comes on the pixels that it belongs to. Convolutions that are not padded in full leave a margin, of at
    most one cell at each end, which the outermost cells fill.
    """
    rows, columns = (_cells(count, length_px) for count, length_px in zip(values.shape[:2], size, strict=True))
    return values[rows[:, None], columns]


def _cells(count: int, length_px: int) -> np.ndarray:
    """Of each pixel of a row, the cell that it belongs to, of so many."""
    pitches = (pitch for pitch in (1, 2, 4, 8) if 0 <= length_px - pitch * count <= 2 * pitch)  # of a discriminator
    pitch_px = next(pitches, length_px / count)
    margin_px = (length_px - pitch_px * count) / 2
    return np.clip((np.arange(length_px) + 0.5 - margin_px) // pitch_px, 0, count - 1).astype(int)


def semantics_picture(semantic: Tensor, size: tuple[int, int]) -> np.ndarray:
    """The principal components of (1, C, h, w) features as colours, (H, W, 3) uint8."""
    height, width = size
    colours = Image.fromarray(to_array(to_uint8(principal_colours(semantic))))
    return np.array(colours.resize((width, height), Image.Resampling.NEAREST))


def attention_picture(image: np.ndarray, attention: Tensor, point: Point) -> np.ndarray:
    """Attention (H', W') for a point over an image in grey, from its smallest value, dark, to its largest, bright."""
    grey = np.rint(image.mean(axis=2, keepdims=True))
    low, high = attention.aminmax()
    heat = coloured(((attention - low) / (high - low).clamp(min=1e-12)).cpu().numpy(), INFERNO)
    mixed = HEAT * spread(heat, image.shape[:2]) + (1 - HEAT) * grey
    return marked(np.rint(mixed).astype(np.uint8), point)


def real_picture(real: Tensor, size: tuple[int, int]) -> np.ndarray:
    """What is taken for real, (h, w) in [0, 1], as colours from 0, blue, to 1, yellow: (H, W, 3) uint8."""
    return spread(coloured(real.cpu().numpy(), VIRIDIS), size)


def marked(image: np.ndarray, point: Point) -> np.ndarray:
    """The image with a ring around a point, which shows on bright and on dark."""
    rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
    x, y = point
    radius_px = max(6, min(image.shape[:2]) / 40)
    distance_px = np.hypot(columns - x, rows - y) - radius_px
    ring = np.where((np.abs(distance_px) < 0.2 * radius_px)[..., None], 255, image)
    outline = (np.abs(distance_px) >= 0.2 * radius_px) & (np.abs(distance_px) < 0.35 * radius_px)
    return np.where(outline[..., None], 0, ring).astype(np.uint8)


@dataclass(frozen=True)
class Views:
    """What a discriminator sees in an image, as pictures of the image's size, (H, W, 3) uint8.

    Where the image is larger than what was shown to it, the rest is the image itself, darkened.
    """

    semantics: np.ndarray | None  # None: it is given none
    attention: np.ndarray | None  # of its finest fusion block, for one telling point; None: nothing in it attends
    real_hr: np.ndarray  # what it takes for real of HR
    real_sr: dict[str, np.ndarray]  # and of each SR image


def views(
    discriminator: nn.Module, extractor: nn.Module | None, *, hr: np.ndarray, sr: Mapping[str, np.ndarray]
) -> Views:
    """Show an HR image, and SR images of it, to a discriminator, which stays as it is.

    Args:
        extractor: of its semantics; None for a plain discriminator.
        hr: (H, W, 3) uint8.
        sr: by label, of the same size.

    Raises UserError for images of less than 32 pixels.
    """
    part = middle(*hr.shape[:2])
    shown = hr[part]
    size, device = shown.shape[:2], next(discriminator.parameters()).device
    image = to_batch(shown, device)
    semantic = None if extractor is None else extractor(image)
    points = [] if semantic is None else telling_points(semantic, size, 1)

    def whole(picture: np.ndarray) -> np.ndarray:
        canvas = hr // 4
        canvas[part] = picture
        return canvas

    at_hr = look(discriminator, image, semantic, points)
    finest = max(at_hr.attention.values(), key=lambda rows: rows.numel(), default=None)
    at_sr = {label: look(discriminator, to_batch(each[part], device), semantic) for label, each in sr.items()}
    return Views(
        semantics=None if semantic is None else whole(semantics_picture(semantic, size)),
        attention=None if finest is None else whole(attention_picture(shown, finest[0], points[0])),
        real_hr=whole(real_picture(at_hr.real, size)),
        real_sr={label: whole(real_picture(each.real, size)) for label, each in at_sr.items()},
    )


def report_extras(judge: Judge, labels: Sequence[str]) -> Extras:
    """The views of a discriminator as further pictures of a report, which compares weights of these labels."""
    kinds = ["semantics"] if judge.extractor is not None else []
    kinds += ["attention"] if attending_blocks(judge.discriminator) else []
    titles = [*kinds, "real/fake: HR", *(f"real/fake: {label}" for label in labels)]

    def draw(hr: np.ndarray, sr: Sequence[np.ndarray | None]) -> list[np.ndarray | None]:
        """Nothing of images that are too small for a discriminator, or too large for the memory."""
        height, width = hr.shape[:2]
        there = {label: each[:height, :width] for label, each in zip(labels, sr, strict=True) if each is not None}
        seen = None
        if min(height, width) >= MIN_PX:
            seen = unless_out_of_memory(partial(views, judge.discriminator, judge.extractor, hr=hr, sr=there))
        if seen is None:
            return [None] * len(titles)
        given = [picture for picture in (seen.semantics, seen.attention) if picture is not None]
        return [*given, seen.real_hr, *(seen.real_sr.get(label) for label in labels)]

    notes = (f"Further pictures show what a discriminator sees: {judge.about}.", *(NOTES[kind] for kind in kinds))
    return Extras(tuple(titles), " ".join((*notes, NOTES["real/fake"])), draw)
