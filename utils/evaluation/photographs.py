"""Upscaling photographs with their alpha."""

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from sed_sr.data.photographs import Photograph, luminance
from sed_sr.utils.evaluation.upscaler import Note, Upscale


def upscale_photographs(upscale: Upscale, photographs: Sequence[Photograph], note: Note) -> list[Photograph]:
    """Upscale photographs whose pixels have one size and type.

    Alpha is upscaled as a grey image, as by Real-ESRGAN, so that its edges are as sharp as those of the colours. A
    generator would leave a faint haze in transparent areas and faint holes in opaque ones: each value is therefore
    limited to the range of the LR alpha in the 3x3 pixels around it.
    """
    upscaled = upscale([photograph.pixels for photograph in photographs], note)
    return [
        replace(
            photograph,
            pixels=sr,
            alpha=_upscale_alpha(upscale, photograph.alpha, note, scale=len(sr) // len(photograph.pixels)),
        )
        for photograph, sr in zip(photographs, upscaled, strict=True)
    ]


def _upscale_alpha(upscale: Upscale, alpha: np.ndarray | None, note: Note, *, scale: int) -> np.ndarray | None:
    if alpha is None:
        return None
    height, width = alpha.shape
    if alpha.min() == alpha.max():  # opaque, as a rule: the limits would leave nothing to the generator
        return np.full((scale * height, scale * width), alpha[0, 0])
    (rgb,) = upscale([np.repeat(alpha[..., None], 3, axis=2)], note)
    sr = luminance(rgb)
    blocks = sr.reshape(height, scale, width, scale)  # of each LR pixel
    around = np.ones((3, 3), np.uint8)
    low, high = (limit(alpha, around)[:, None, :, None] for limit in (cv2.erode, cv2.dilate))
    np.clip(blocks, low, high, out=blocks)
    return sr
