"""Unsharp masking of HR with a soft mask, which leaves smooth areas unchanged."""

from functools import cache

import torch
from torch import Tensor

from sed_sr.data.degradation.kernels import blur, gaussian_kernel, stack_kernels


def sharpen(hr: Tensor, *, kernel_px: int, weight: float, threshold: float) -> Tensor:
    """Add the detail that a blur removes, where it exceeds a threshold (Real-ESRGAN, section 4.1).

    Args:
        hr: (B, 3, H, W) float in [0, 1].
        kernel_px: side of the Gaussian kernel, odd; its sigma follows from it by OpenCV's formula.
        weight: factor of the added detail.
        threshold: detail up to this, in levels of 255, counts as smooth; the mask of the other pixels is blurred.

    Returns:
        (B, 3, H, W) float in [0, 1].
    """
    kernels = _kernels(kernel_px, hr.device)
    detail = hr - blur(hr, kernels)
    mask = blur((detail.abs() * 255 > threshold).to(hr), kernels)
    return torch.lerp(hr, (hr + weight * detail).clamp(0, 1), mask).clamp(0, 1)


@cache
def _kernels(kernel_px: int, device: torch.device) -> Tensor:
    """(1, k, k) float32: one Gaussian kernel for all images, copied to each device once."""
    sigma_px = 0.3 * ((kernel_px - 1) * 0.5 - 1) + 0.8  # cv2.getGaussianKernel
    kernel = gaussian_kernel(kernel_px, sigma_px=(sigma_px, sigma_px))
    return torch.from_numpy(stack_kernels([kernel])).to(device)
