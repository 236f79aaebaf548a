"""JPEG compression and decompression of a batch in torch, each sample with its own quality, on any device.

ITU-T T.81 (baseline, lossy) with the colour space of JFIF and 4:2:0 chroma. As in libjpeg, a quality scales the tables
of Annex K, and chroma is down- and upsampled. The lossless coding of the coefficients is omitted, because it changes no
pixel.
"""

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_PX = 8
# ITU-T T.81, Tables K.1 and K.2: quantization steps, vertical frequency down, horizontal to the right.
LUMINANCE_STEPS = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE_STEPS = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
)
# JFIF 1.02: Y, Cb and Cr from RGB. The offset of 128 of Cb and Cr cancels with the level shift of T.81, so that only Y
# is shifted here.
RED, GREEN, BLUE = 0.299, 0.587, 0.114
YCC_OF_RGB = (
    (RED, GREEN, BLUE),
    (-RED / 1.772, -GREEN / 1.772, (1 - BLUE) / 1.772),
    ((1 - RED) / 1.402, -GREEN / 1.402, -BLUE / 1.402),
)
RGB_OF_YCC = ((1, 0, 1.402), (1, -1.772 * BLUE / GREEN, -1.402 * RED / GREEN), (1, 1.772, 0))


def jpeg(images: Tensor, quality: Tensor) -> Tensor:
    """Compress and decompress images.

    Args:
        images: (B, 3, H, W) float32 in [0, 1], RGB. Blocks beyond the edge repeat the edge pixels.
        quality: (B,) in [1, 100], as in libjpeg; rounded to the nearest integer.

    Returns:
        (B, 3, H, W) float32 in [0, 1]; not rounded to 8 bits.
    """
    height, width = images.shape[-2:]
    ycc = _mix_channels(images * 255, YCC_OF_RGB).round_()  # samples have 8 bits before and after the transform
    luminance = ycc[:, :1] - 128
    chrominance = F.avg_pool2d(ycc[:, 1:], 2, ceil_mode=True).round_()
    luminance = _code(luminance, quantization_table(LUMINANCE_STEPS, quality))
    chrominance = _code(chrominance, quantization_table(CHROMINANCE_STEPS, quality))
    # Bilinear interpolation has the weights of libjpeg's "fancy upsampling", 3/4 and 1/4.
    chrominance = F.interpolate(chrominance, scale_factor=2, mode="bilinear")[..., :height, :width]
    rgb = _mix_channels(torch.cat((luminance + 128, chrominance), dim=1), RGB_OF_YCC)
    return rgb.div_(255).clamp_(0, 1)


def quantization_table(steps: tuple[tuple[int, ...], ...], quality: Tensor) -> Tensor:
    """Scale a table of Annex K as libjpeg's `jpeg_set_quality` does.

    Args:
        steps: `LUMINANCE_STEPS` or `CHROMINANCE_STEPS`.
        quality: (B,) in [1, 100].

    Returns:
        (B, 8, 8) float32, integers in [1, 255].
    """
    quality = quality.float().round()[:, None, None]
    percent = torch.where(quality < 50, (5000 / quality).floor(), 200 - 2 * quality)
    return ((_table(steps, quality.device) * percent + 50) / 100).floor().clamp(1, 255)


def _code(planes: Tensor, table: Tensor) -> Tensor:
    """(B, C, H, W) in [-128, 127] -> the same, with the DCT coefficients of its 8x8 blocks rounded to steps.

    The transforms multiply rows and columns of blocks in place, without gathering the blocks (T.81, A.3.3).
    table: (B, 8, 8), the steps.
    """
    batch, channels, height, width = planes.shape
    planes = F.pad(planes, (0, -width % BLOCK_PX, 0, -height % BLOCK_PX), mode="replicate")
    rows, columns = planes.shape[2] // BLOCK_PX, planes.shape[3] // BLOCK_PX
    dct = _dct_matrix(planes.device)
    step = table[:, None, None, :, None]  # (B, 1, 1, 8, 1, 8)
    vertical = dct @ planes.reshape(batch, channels, rows, BLOCK_PX, -1)
    coefficients = vertical.reshape(batch, channels, rows, BLOCK_PX, columns, BLOCK_PX) @ dct.T
    coefficients = (coefficients / step).round_() * step
    vertical = (coefficients @ dct).reshape(batch, channels, rows, BLOCK_PX, -1)
    decoded = (dct.T @ vertical).reshape(planes.shape)
    return decoded[..., :height, :width].round_().clamp_(-128, 127)


@cache
def _dct_matrix(device: torch.device) -> Tensor:
    """(8, 8) float32: orthonormal DCT-II, frequency k down, position n to the right (T.81, A.3.3).

    It is copied to each device once.
    """
    k, n = torch.arange(BLOCK_PX).double()[:, None], torch.arange(BLOCK_PX)
    matrix = torch.cos((2 * n + 1) * k * math.pi / (2 * BLOCK_PX)) * math.sqrt(2 / BLOCK_PX)
    matrix[0] /= math.sqrt(2)
    return matrix.float().to(device)


def _mix_channels(images: Tensor, weights: tuple[tuple[float, ...], ...]) -> Tensor:
    """(B, 3, H, W) -> (B, 3, H, W): the channels of every pixel, multiplied by a 3x3 matrix."""
    return (_table(weights, images.device) @ images.flatten(2)).view_as(images)


@cache
def _table(rows: tuple[tuple[float, ...], ...], device: torch.device) -> Tensor:
    """A table of this file as float32, copied to each device once."""
    return torch.tensor(rows, dtype=torch.float, device=device)
