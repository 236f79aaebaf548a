"""The artifact loss of LDL: a distance to HR that counts where G makes artifacts.

Source: Liang et al., "Details or Artifacts: A Locally Discriminative Learning Approach to Realistic Image
Super-Resolution", CVPR 2022, section 3. As in the released code, gradients also flow through the artifact map.
"""

import torch
from torch import Tensor

from sed_sr.models.losses.pixel import l1_loss

WINDOW_PX = 7  # side n of the local windows
ROOT = 5  # a: the variance of the whole residual enters by its a-th root


def artifact_loss(sr: Tensor, hr: Tensor, sr_ema: Tensor) -> Tensor:
    """The L1 loss between SR and HR, both multiplied by the artifact map, which is not negative.

    Args:
        sr: (B, 3, H, W) float in [0, 1], H and W at least 4.
        hr: of the same shape; the ground truth.
        sr_ema: of the same shape; SR of the generator with averaged weights. It gets no gradient.

    Returns:
        A scalar.
    """
    weight = artifact_map(sr, hr, sr_ema)
    return l1_loss(weight * sr, weight * hr)


def artifact_map(sr: Tensor, hr: Tensor, sr_ema: Tensor) -> Tensor:
    """How much of an artifact each pixel of SR is, (B, 1, H, W), not negative. Images do not affect each other.

    With the residual R = sum over channels of |HR - SR|, it is var(R)^(1/5) of the whole image times the variance of R
    in the window around the pixel. It is 0 where the residual is less than that of the averaged generator: there,
    training does not go astray.
    """
    residual, residual_ema = residual_of(sr, hr), residual_of(sr_ema, hr)
    # At 0 the root has an infinite derivative.
    overall = residual.var(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(residual.dtype).tiny) ** (1 / ROOT)
    return (overall * local_variance(residual)).masked_fill(residual < residual_ema, 0)


def residual_of(sr: Tensor, hr: Tensor) -> Tensor:
    """The sum over channels of |HR - SR|: (B, 3, H, W) each -> (B, 1, H, W)."""
    return (hr - sr).abs().sum(dim=1, keepdim=True)


def local_variance(x: Tensor) -> Tensor:
    """The unbiased variance in the 7x7 window around each pixel of (B, 1, H, W), reflected at its edges."""
    for dim in (2, 3):
        x = _reflected(x, dim)
    return x.unfold(2, WINDOW_PX, 1).unfold(3, WINDOW_PX, 1).var(dim=(-2, -1))


def _reflected(x: Tensor, dim: int) -> Tensor:
    # As by F.pad, whose gradient is not deterministic on a GPU.
    margin, size = WINDOW_PX // 2, x.shape[dim]
    before, after = x.narrow(dim, 1, margin), x.narrow(dim, size - 1 - margin, margin)
    return torch.cat((before.flip(dim), x, after.flip(dim)), dim)
