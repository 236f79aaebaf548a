"""SeFB, the semantic-aware fusion block of SeD.

Source: Li et al., "SeD: Semantic-Aware Discriminator for Image Super-Resolution", CVPR 2024 (arXiv 2402.19387),
section 3. In its cross-attention, queries come from the semantic features, keys and values from the image features, so
that the discriminator judges textures depending on their semantic content.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SemanticFusionBlock(nn.Module):
    """One transformer block without residual connections, then pixel shuffle and a convolution.

    It accepts semantic features with any number of channels and any grid: the number of output channels is rounded up,
    and the shuffled map is resized if necessary.

    Args:
        image_channels: of the image features.
        upscale: r, ratio of the grid of the image features to that of the semantic features, rounded.
        semantic_channels: C, of the semantic features.
        refine_kernel: 3, or 4, which needs one more row and column than the image features have.
        inner_channels: of the single attention head.

    Attributes:
        out_channels: of the result, C / r^2 rounded up.
    """

    def __init__(
        self,
        *,
        image_channels: int,
        upscale: int,
        semantic_channels: int = 1024,
        refine_kernel: int = 3,
        inner_channels: int = 64,
    ):
        super().__init__()
        self.out_channels = math.ceil(semantic_channels / upscale**2)
        self.norm = _group_norm(semantic_channels)
        self.semantic_in = nn.Conv2d(semantic_channels, inner_channels, 1)
        self.image_in = nn.Conv2d(image_channels, inner_channels, 1)
        self.self_attention_norm = nn.LayerNorm(inner_channels)
        self.self_attention = Attention(inner_channels)
        self.cross_attention_norm = nn.LayerNorm(inner_channels)
        self.cross_attention = Attention(inner_channels)
        self.feed_forward_norm = nn.LayerNorm(inner_channels)
        self.feed_forward = FeedForward(inner_channels)
        self.semantic_out = nn.Conv2d(inner_channels, self.out_channels * upscale**2, 1)
        self.shuffle = nn.PixelShuffle(upscale)
        self.refine = nn.Conv2d(self.out_channels, self.out_channels, refine_kernel, padding=1)
        _zero_init(self.semantic_out)

    def forward(self, semantic: Tensor, image: Tensor) -> Tensor:
        """Semantic (B, semantic_channels, h, w) and image features (kB, channels, H, W) -> (kB, out_channels, H, W).

        Image n is paired with semantic features n mod B. Tokens are the positions of each grid, row by row.
        """
        context = self.image_in(image).flatten(2).transpose(1, 2)  # (kB, HW, inner)
        # PyTorch 2.6 crashes in the backward pass of GroupNorm for a channels_last input that needs no gradient.
        x = self.semantic_in(self.norm(semantic.contiguous())).flatten(2).transpose(1, 2)  # (B, hw, inner)
        x = self.self_attention_norm(x)
        x = self.self_attention(x, x)
        x = self.cross_attention(self.cross_attention_norm(x), context)  # (kB, hw, inner)
        x = self.feed_forward(self.feed_forward_norm(x))
        x = self.semantic_out(x.transpose(1, 2).unflatten(2, semantic.shape[-2:]))
        return self.refine(_resample_for(self.refine, self.shuffle(x), image))


class SemanticConcatenation(nn.Module):
    """SemanticFusionBlock without both attentions, for the ablation of attention.

    The output does not depend on the image, and each position depends on its own semantic features only, apart from the
    statistics of the norm. The discriminator concatenates it to its image features.

    Args and attributes as in SemanticFusionBlock.
    """

    def __init__(
        self, *, upscale: int, semantic_channels: int = 1024, refine_kernel: int = 3, inner_channels: int = 64
    ):
        super().__init__()
        self.out_channels = math.ceil(semantic_channels / upscale**2)
        self.norm = _group_norm(semantic_channels)
        self.semantic_in = nn.Conv2d(semantic_channels, inner_channels, 1)
        self.feed_forward_norm = nn.LayerNorm(inner_channels)
        self.feed_forward = FeedForward(inner_channels)
        self.semantic_out = nn.Conv2d(inner_channels, self.out_channels * upscale**2, 1)
        self.shuffle = nn.PixelShuffle(upscale)
        self.refine = nn.Conv2d(self.out_channels, self.out_channels, refine_kernel, padding=1)
        _zero_init(self.semantic_out)

    def forward(self, semantic: Tensor, image: Tensor) -> Tensor:
        """Shapes as in SemanticFusionBlock. Only the grid of the image features is used."""
        x = self.semantic_in(self.norm(semantic.contiguous())).movedim(1, -1)  # (B, h, w, inner)
        x = self.feed_forward(self.feed_forward_norm(x))
        x = self.semantic_out(x.movedim(-1, 1))
        x = self.refine(_resample_for(self.refine, self.shuffle(x), image))
        return _repeat(x, len(image) // len(x))


class Attention(nn.Module):
    """Single-head attention: queries (B, N, dim), context (kB, M, dim) -> (kB, N, dim).

    Context n is paired with queries n mod B.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(dim, dim, bias=False)
        self.to_v = nn.Linear(dim, dim, bias=False)
        self.to_out = nn.Linear(dim, dim)

    def forward(self, query: Tensor, context: Tensor) -> Tensor:
        q, k, v = _repeat(self.to_q(query), len(context) // len(query)), self.to_k(context), self.to_v(context)
        # With a dimension for the head, because PyTorch's fast attention kernels require four dimensions.
        return self.to_out(F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0])


class FeedForward(nn.Module):
    """GEGLU (Shazeer, "GLU Variants Improve Transformer", 2020), 4 * dim hidden channels: (B, N, dim) -> same shape."""

    def __init__(self, dim: int):
        super().__init__()
        self.proj_in = nn.Linear(dim, 8 * dim)
        self.proj_out = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj_in(x).chunk(2, dim=-1)
        return self.proj_out(value * F.gelu(gate))


def _group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with 32 groups as published, or the greatest common divisor of 32 and the channels."""
    return nn.GroupNorm(math.gcd(32, channels), channels, eps=1e-6)


def _zero_init(layer: nn.Conv2d) -> None:
    """Initialise with zeros, so that a block does not influence the discriminator at first."""
    assert layer.bias is not None
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


def _repeat(x: Tensor, times: int) -> Tensor:
    """(B, ...) -> (times * B, ...), entry n from n mod B. Keeps the memory format, unlike Tensor.repeat."""
    return x if times == 1 else torch.cat([x] * times)


def _resample_for(refine: nn.Conv2d, x: Tensor, image: Tensor) -> Tensor:
    """Resize (B, C, any grid) to the grid for which `refine` returns the grid of the image features."""
    # A convolution with kernel k and padding 1 shortens each side by k - 3.
    grid = tuple(side + kernel - 3 for side, kernel in zip(image.shape[-2:], refine.kernel_size, strict=True))
    if x.shape[-2:] == grid:
        return x
    return F.interpolate(x, size=grid, mode="bilinear", align_corners=False)
