"""The feature matching loss: Wang et al., "pix2pixHD", CVPR 2018."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sed_sr.models.losses.pixel import l1_loss


def feature_matching_loss(sr_features: Sequence[Tensor], hr_features: Sequence[Tensor]) -> Tensor:
    """Equation 4, divided by the number of layers: mean over the layers of the L1 distance of D's features.

    Args:
        sr_features, hr_features: features of SR and of HR, of any shapes.

    Returns:
        A scalar, in float32.
    """
    return torch.stack([l1_loss(sr, hr) for sr, hr in zip(sr_features, hr_features, strict=True)]).mean()
