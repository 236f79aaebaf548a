"""Blur kernels of the degradation, and convolution with them."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.fft import next_fast_len
from scipy.special import j1
from torch import Tensor


def gaussian_kernel(size_px: int, *, sigma_px: tuple[float, float], angle: float = 0.0) -> np.ndarray:
    """exp(-q / 2) for q = x^T S^-1 x (Real-ESRGAN, Eq. 2).

    Args:
        size_px: side k, odd.
        sigma_px: standard deviations along the two axes of the ellipse; S is the covariance.
        angle: from the image's horizontal axis to the first axis of the ellipse, in radians, clockwise.

    Returns:
        (k, k) float64, its sum is 1.
    """
    return _normalized(np.exp(-_quadratic_form(size_px, sigma_px, angle) / 2))


def generalized_gaussian_kernel(
    size_px: int, *, sigma_px: tuple[float, float], beta: float, angle: float = 0.0
) -> np.ndarray:
    """exp(-q^beta / 2): a Gaussian for beta = 1, more peaked for smaller and flatter for larger beta.

    Real-ESRGAN, section 3.1, after Liu et al., "Estimating generalized Gaussian blur kernels", TCSVT 2020; see
    `gaussian_kernel`.
    """
    return _normalized(np.exp(-(_quadratic_form(size_px, sigma_px, angle) ** beta) / 2))


def plateau_kernel(size_px: int, *, sigma_px: tuple[float, float], beta: float, angle: float = 0.0) -> np.ndarray:
    """1 / (1 + q^beta): flat in the middle, with a steeper edge for a larger beta (Real-ESRGAN, section 3.1); see
    `gaussian_kernel`."""
    return _normalized(1 / (1 + _quadratic_form(size_px, sigma_px, angle) ** beta))


def sinc_kernel(cutoff: float, size_px: int) -> np.ndarray:
    """The ideal circular low-pass, cutoff * J1(cutoff * r) / (2 pi r), cut to a square (Real-ESRGAN, section 3.3).

    Args:
        cutoff: highest frequency that passes, in radians per pixel, in (0, pi].
        size_px: side k, odd.

    Returns:
        (k, k) float64, its sum is 1.
    """
    x, y = _grid(size_px)
    r = np.maximum(np.hypot(x, y), 1e-6)  # the limit in the centre
    return _normalized(cutoff * j1(cutoff * r) / (2 * math.pi * r))


def identity_kernel() -> np.ndarray:
    """(1, 1): does not change an image."""
    return np.ones((1, 1))


def stack_kernels(kernels: Sequence[np.ndarray]) -> np.ndarray:
    """Kernels with odd sides -> (B, k, k) float32, padded with zeros to the largest."""
    side = max(len(kernel) for kernel in kernels)
    padded = [np.pad(kernel, (side - len(kernel)) // 2) for kernel in kernels]
    return np.stack(padded).astype(np.float32)


def blur(images: Tensor, kernels: Tensor) -> Tensor:
    """Convolve every image with its own kernel.

    Args:
        images: (B, C, H, W) float, of any size. They are mirrored at their edges without repeating the edge pixels,
            several times if the kernel is larger than the image.
        kernels: (B, k, k) float, k odd.

    Returns:
        (B, C, H, W) float; with negative weights, values outside the range of the images are possible.
    """
    height, width = images.shape[-2:]
    reach = kernels.shape[-1] // 2
    # For 400x400 images and 21x21 kernels on a CPU, Fourier transforms take a half (batch of 8) to a fifteenth (one
    # image) of the time of F.conv2d. Lengths with large prime factors would take four times as long.
    # SciPy's stand-in for the C function has no return value.
    size: list[int] = [next_fast_len(side + 2 * reach, real=True) for side in (height, width)]  # pyright: ignore[reportAssignmentType]
    rows, columns = (
        _mirrored(side, start=-reach, length=length, device=images.device)
        for side, length in zip((height, width), size, strict=True)
    )
    mirrored = images.index_select(2, rows).index_select(3, columns)
    spectrum = torch.fft.rfft2(mirrored) * torch.fft.rfft2(kernels, s=size)[:, None]
    # The kernel's corner is its origin here, so the result is shifted; the part before it is wrapped around.
    return torch.fft.irfft2(spectrum, s=size)[..., 2 * reach : 2 * reach + height, 2 * reach : 2 * reach + width]


def _mirrored(side: int, *, start: int, length: int, device: torch.device) -> Tensor:
    """Indices of the pixels at start, start + 1, ... of an axis of `side` pixels that is mirrored endlessly."""
    period = max(2 * (side - 1), 1)
    indices = torch.arange(start, start + length, device=device) % period
    return torch.minimum(indices, period - indices)


def _quadratic_form(size_px: int, sigma_px: tuple[float, float], angle: float) -> np.ndarray:
    """(k, k): x^T S^-1 x of every pixel, for S = R diag(sigma_px^2) R^T and the rotation R."""
    x, y = _grid(size_px)
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
    return (along / sigma_px[0]) ** 2 + (across / sigma_px[1]) ** 2


def _grid(size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """x (to the right) and y (down) of every pixel relative to the centre, (k, k) each."""
    assert size_px % 2 == 1, size_px
    positions = np.arange(size_px, dtype=np.float64) - size_px // 2
    return np.meshgrid(positions, positions)


def _normalized(kernel: np.ndarray) -> np.ndarray:
    return kernel / kernel.sum()
