"""What all generators have in common."""

from torch import nn


class Generator(nn.Module):
    """A network that maps LR, (B, 3, H, W), to SR, (B, 3, scale * H, scale * W), both float in [0, 1]."""

    scale: int
