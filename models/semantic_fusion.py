"""SeFB, the semantic-aware fusion block of SeD.

Source: Li et al., "SeD: Semantic-Aware Discriminator for Image Super-Resolution", CVPR 2024 (arXiv 2402.19387),
section 3. Semantics ask (query), image features answer (key and value): the discriminator judges texture where, and as
what, it stands in the picture.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SemanticFusionBlock(nn.Module):
    """One transformer block without residual connections, then pixel shuffle and a convolution.

    It fits itself to any semantics: where their channels or their grid do not come out even, there are a few more
    channels, or the shuffled map is resampled.

    Args:
        image_channels: of the image features.
        upscale: r, about how many times finer the grid of the image features is than that of the semantics.
        semantic_channels: C, of the semantics.
        refine_kernel: 3, or 4, which starts from one more row and column than the image features have.
        inner_channels: of the one head of attention.

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
        _silence(self.semantic_out)

    def forward(self, semantic: Tensor, image: Tensor) -> Tensor:
        """Semantics (B, semantic_channels, h, w), image features (kB, channels, H, W) -> (kB, out_channels, H, W).

        Image n goes with semantics n mod B. Tokens are the positions of each grid, row by row: those of the semantics
        ask, those of the image answer.
        """
        answers = self.image_in(image).flatten(2).transpose(1, 2)  # (kB, HW, inner)
        # PyTorch 2.6 crashes in the backward pass of GroupNorm on a channels_last input that wants no gradient.
        x = self.semantic_in(self.norm(semantic.contiguous())).flatten(2).transpose(1, 2)  # (B, hw, inner)
        x = self.self_attention_norm(x)
        x = self.self_attention(x, x)
        x = self.cross_attention(self.cross_attention_norm(x), answers)  # (kB, hw, inner)
        x = self.feed_forward(self.feed_forward_norm(x))
        x = self.semantic_out(x.transpose(1, 2).unflatten(2, semantic.shape[-2:]))
        return self.refine(_resample_for(self.refine, self.shuffle(x), image))


class SemanticConcatenation(nn.Module):
    """SemanticFusionBlock without its two attentions, all else the same: the ablation that tells what attention brings.

    Each semantic position speaks for its own place and knows nothing of the image, nor of other positions but through
    the norm's statistics; the discriminator still gets it concatenated to its image features.

    Args and attributes as those of SemanticFusionBlock.
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
        _silence(self.semantic_out)

    def forward(self, semantic: Tensor, image: Tensor) -> Tensor:
        """As SemanticFusionBlock's; of the image features only the grid counts."""
        x = self.semantic_in(self.norm(semantic.contiguous())).movedim(1, -1)  # (B, h, w, inner)
        x = self.feed_forward(self.feed_forward_norm(x))
        x = self.semantic_out(x.movedim(-1, 1))
        x = self.refine(_resample_for(self.refine, self.shuffle(x), image))
        return _repeat(x, len(image) // len(x))


class Attention(nn.Module):
    """Single-head attention: queries (B, N, dim), context (kB, M, dim) -> (kB, N, dim).

    Context n is asked by queries n mod B.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(dim, dim, bias=False)
        self.to_v = nn.Linear(dim, dim, bias=False)
        self.to_out = nn.Linear(dim, dim)

    def forward(self, query: Tensor, context: Tensor) -> Tensor:
        q, k, v = _repeat(self.to_q(query), len(context) // len(query)), self.to_k(context), self.to_v(context)
        # The head has a dimension of its own because PyTorch's fast attention kernels take four dimensions only.
        return self.to_out(F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0])


class FeedForward(nn.Module):
    """GEGLU (Shazeer, "GLU Variants Improve Transformer", 2020), four times wider inside: (B, N, dim) -> the same."""

    def __init__(self, dim: int):
        super().__init__()
        self.proj_in = nn.Linear(dim, 8 * dim)
        self.proj_out = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj_in(x).chunk(2, dim=-1)
        return self.proj_out(value * F.gelu(gate))


def _group_norm(channels: int) -> nn.GroupNorm:
    """Of 32 groups as published, or the most that divide both."""
    return nn.GroupNorm(math.gcd(32, channels), channels, eps=1e-6)


def _silence(layer: nn.Conv2d) -> None:
    """A block starts by saying nothing; it earns its influence on the discriminator."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


def _repeat(x: Tensor, times: int) -> Tensor:
    """(B, ...) -> (times * B, ...): entry n is that of n mod B. The memory format stays, unlike with Tensor.repeat."""
    return x if times == 1 else torch.cat([x] * times)


def _resample_for(refine: nn.Conv2d, x: Tensor, image: Tensor) -> Tensor:
    """(B, C, any grid) -> (B, C, the grid from which `refine` makes that of the image features)."""
    # A convolution of kernel k, with a padding of 1, takes k - 3 from each side's length.
    grid = tuple(side + kernel - 3 for side, kernel in zip(image.shape[-2:], refine.kernel_size, strict=True))
    if x.shape[-2:] == grid:
        return x
    return F.interpolate(x, size=grid, mode="bilinear", align_corners=False)
