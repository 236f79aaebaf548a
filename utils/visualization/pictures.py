"""The views of a discriminator as pictures."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor, nn

from sed_sr.data.tensors import to_array, to_uint8
from sed_sr.utils.visualization.discriminator_views import Point, discriminator_views, principal_colours
from sed_sr.utils.visualization.figure import INFERNO, VIRIDIS, apply_colour_map

HEAT = 0.6  # opacity of an attention map over the grey image
PITCHES_PX = (1, 2, 4, 8)  # possible distances of the values of a discriminator


@dataclass(frozen=True)
class DiscriminatorPictures:
    """What a discriminator sees in an image, as pictures of the size of the image, (H, W, 3) uint8.

    Where the image is larger than what the discriminator accepts, the margin is the image itself, darkened.
    """

    semantics: np.ndarray | None  # None: a plain discriminator
    attention: np.ndarray | None  # of the finest fusion block, for one point; None: no cross-attention
    real_hr: np.ndarray
    real_sr: dict[str, np.ndarray]


def discriminator_pictures(
    discriminator: nn.Module, extractor: nn.Module | None, *, hr: np.ndarray, sr: Mapping[str, np.ndarray]
) -> DiscriminatorPictures:
    """Draw the views of a discriminator. Arguments and errors: as of `discriminator_views`."""
    views = discriminator_views(discriminator, extractor, hr=hr, sr=sr)
    shown = hr[views.part]
    size = shown.shape[:2]

    def with_margin(picture: np.ndarray) -> np.ndarray:
        canvas = hr // 4
        canvas[views.part] = picture
        return canvas

    finest = max(views.attention.values(), key=lambda maps: maps.size, default=None)
    return DiscriminatorPictures(
        semantics=None if views.semantics is None else with_margin(semantics_picture(views.semantics, size)),
        attention=None if finest is None else with_margin(attention_picture(shown, finest[0], views.points[0])),
        real_hr=with_margin(real_picture(views.real_hr, size)),
        real_sr={label: with_margin(real_picture(real, size)) for label, real in views.real_sr.items()},
    )


def semantics_picture(semantic: Tensor, size: tuple[int, int]) -> np.ndarray:
    """The principal components of (1, C, h, w) features as colours, (H, W, 3) uint8."""
    height, width = size
    colours = Image.fromarray(to_array(to_uint8(principal_colours(semantic))))
    return np.array(colours.resize((width, height), Image.Resampling.NEAREST))


def attention_picture(image: np.ndarray, attention: np.ndarray, point: Point) -> np.ndarray:
    """The attention map (H', W') of a point over a grey image, from the lowest value, dark, to the highest, bright."""
    grey = np.rint(image.mean(axis=2, keepdims=True))
    low, high = attention.min(), attention.max()
    heat = apply_colour_map((attention - low) / max(high - low, 1e-12), INFERNO)
    blended = HEAT * stretch(heat, image.shape[:2]) + (1 - HEAT) * grey
    return mark_point(np.rint(blended).astype(np.uint8), point)


def real_picture(real: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Probabilities of being real, (h, w), as colours from 0, blue, to 1, yellow: (H, W, 3) uint8."""
    return stretch(apply_colour_map(real, VIRIDIS), size)


def mark_point(image: np.ndarray, point: Point) -> np.ndarray:
    """The image with a ring around a point, visible on bright and on dark areas."""
    rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
    x, y = point
    radius_px = max(6, min(image.shape[:2]) / 40)
    distance_px = np.abs(np.hypot(columns - x, rows - y) - radius_px)[..., None]
    ring = np.where(distance_px < 0.35 * radius_px, 0, image)  # black outline
    return np.where(distance_px < 0.2 * radius_px, 255, ring).astype(np.uint8)


def stretch(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map of a discriminator, (h, w, C), at the size of the image (height, width): (H, W, C).

    Each value covers the pixels that it belongs to. Convolutions without full padding leave a margin of at most one
    value at each end, which the outermost values cover.
    """
    rows, columns = (_value_of_pixel(count, length_px) for count, length_px in zip(values.shape[:2], size, strict=True))
    return values[rows[:, None], columns]


def _value_of_pixel(count: int, length_px: int) -> np.ndarray:
    """For each pixel of a row or column, the index of the value that covers it."""
    pitches_px = (pitch_px for pitch_px in PITCHES_PX if 0 <= length_px - pitch_px * count <= 2 * pitch_px)
    pitch_px = next(pitches_px, length_px / count)
    margin_px = (length_px - pitch_px * count) / 2
    return np.clip((np.arange(length_px) + 0.5 - margin_px) // pitch_px, 0, count - 1).astype(int)
