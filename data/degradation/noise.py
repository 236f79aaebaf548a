"""Gaussian and Poisson noise of the degradation, coloured or grey (Real-ESRGAN, section 3.2).

Every sample of a batch has its own strength; the random fields are drawn on the device of the images.
"""

from functools import cache

import torch
from torch import Tensor

LEVELS = 256  # of 8 bits
LUMINANCE = (0.2989, 0.587, 0.114)  # of R, G and B: ITU-R BT.601, with the digits of torchvision's rgb_to_grayscale


def gaussian_noise(images: Tensor, *, sigma: Tensor, grey: Tensor, generator: torch.Generator) -> Tensor:
    """Add normally distributed noise, independent of the image.

    Args:
        images: (B, 3, H, W) float32 in [0, 1].
        sigma: (B,) float, standard deviation in levels of 255.
        grey: (B,) bool; True: all channels get the same noise.
        generator: on the device of the images.

    Returns:
        (B, 3, H, W) float, clipped to [0, 1].
    """
    field = torch.randn(images.shape, generator=generator, device=images.device)
    field = torch.where(_per_sample(grey), field[:, :1], field)
    return (images + field * (_per_sample(sigma) / (LEVELS - 1))).clamp(0, 1)


def poisson_noise(images: Tensor, *, scale: Tensor, grey: Tensor, generator: torch.Generator) -> Tensor:
    """Add shot noise, as if every pixel counted up to v photons: its variance is brightness / v * scale^2.

    v is the number of distinct values in the sample (in its luminance if grey), rounded up to a power of two.

    Args:
        images: (B, 3, H, W) float32 in [0, 1]; counts are drawn from the image rounded to 8 bits.
        scale: (B,) float, factor of the noise.
        grey: (B,) bool; True: the noise is that of the luminance, the same in all channels.
        generator: on the device of the images.

    Returns:
        (B, 3, H, W) float, clipped to [0, 1].
    """
    grey = _per_sample(grey)
    luminance = (_luminance_weights(images.device) @ images.flatten(2)).view_as(images[:, 0]).unsqueeze(1)
    levels = (torch.where(grey, luminance, images).clamp(0, 1) * (LEVELS - 1)).round_()
    photons = _per_sample(count_distinct(levels).log2().ceil().exp2())
    clean = levels / (LEVELS - 1)
    noise = torch.poisson(clean * photons, generator=generator) / photons - clean
    noise = torch.where(grey, noise[:, :1], noise)
    return (images + noise * _per_sample(scale)).clamp(0, 1)


def count_distinct(levels: Tensor) -> Tensor:
    """(B, 3, H, W) float, integers in [0, 255] -> (B,) float: the number of distinct values in each sample."""
    # torch.unique would synchronize with the GPU for each sample.
    seen = torch.zeros(len(levels), LEVELS, device=levels.device)
    return seen.scatter_(1, levels.flatten(1).long(), 1).sum(1)


@cache
def _luminance_weights(device: torch.device) -> Tensor:
    """(3,) float32: `LUMINANCE`, copied to each device once."""
    return torch.tensor(LUMINANCE, device=device)


def _per_sample(values: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)."""
    return values[:, None, None, None]
