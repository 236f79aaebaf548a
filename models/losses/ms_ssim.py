"""The multi-scale SSIM loss: Wang et al., "Multiscale Structural Similarity", Asilomar 2003."""

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW_PX, SIGMA_PX = 11, 1.5  # of the Gaussian window
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # section 3.2; their sum is 1.0001
C1, C2 = 0.01**2, 0.03**2  # for images in [0, 1]
MIN_SIMILARITY = 1e-4  # a negative number has no fractional power, and that of 0 no finite derivative


def ms_ssim_loss(sr: Tensor, hr: Tensor) -> Tensor:
    """1 - MS-SSIM of each image and each RGB channel (equation 7), averaged. Computed in float32, also under autocast.

    Each scale halves the image. If the shorter side is less than 176 pixels, there are fewer than five scales: those
    that the window fits into, with weights in the same proportions.

    Args:
        sr, hr: (B, 3, H, W) float in [0, 1], sides of at least 11 pixels.

    Returns:
        A scalar.
    """
    shorter_side = min(sr.shape[-2:])
    weights = [weight for i, weight in enumerate(SCALE_WEIGHTS) if shorter_side >> i >= WINDOW_PX]
    factor = sum(SCALE_WEIGHTS) / sum(weights)
    similarity = torch.ones((), device=sr.device)
    with torch.autocast(sr.device.type, enabled=False):
        sr, hr = sr.float().flatten(0, 1), hr.float().flatten(0, 1)  # (3B, H, W)
        for i, weight in enumerate(weights):
            luminance, contrast = _similarities(sr, hr)
            coarsest = i == len(weights) - 1
            mean = (luminance * contrast if coarsest else contrast).mean(dim=(-2, -1))
            similarity = similarity * mean.clamp(min=MIN_SIMILARITY) ** (weight * factor)
            if not coarsest:
                sr, hr = F.avg_pool2d(sr, 2), F.avg_pool2d(hr, 2)
    return 1 - similarity.mean()


def _similarities(sr: Tensor, hr: Tensor) -> tuple[Tensor, Tensor]:
    """Equation 1, and the product of equations 2 and 3, where the window lies inside: (N, H - 10, W - 10)."""
    # Products with band matrices instead of convolutions, which may round to TF32: variances are small differences.
    rows, columns = (_window(side, sr.device) for side in sr.shape[-2:])
    moments = rows @ torch.stack((sr, hr, sr * sr, hr * hr, sr * hr)) @ columns.T
    mean_sr, mean_hr, square_sr, square_hr, product = moments
    variances = square_sr - mean_sr**2 + square_hr - mean_hr**2
    luminance = (2 * mean_sr * mean_hr + C1) / (mean_sr**2 + mean_hr**2 + C1)
    return luminance, (2 * (product - mean_sr * mean_hr) + C2) / (variances + C2)


def _window(side: int, device: torch.device) -> Tensor:
    """(side - 10, side): each row has the Gaussian window at another position."""
    starts = torch.arange(side - WINDOW_PX + 1, device=device)[:, None]
    offsets = torch.arange(side, device=device) - starts - WINDOW_PX // 2
    window = torch.exp(-offsets.square() / (2 * SIGMA_PX**2)) * (offsets.abs() <= WINDOW_PX // 2)
    return window / window.sum(dim=1, keepdim=True)
