"""SeFB, the semantic-aware fusion block of SeD.

Source: Li et al., "SeD: Semantic-Aware Discriminator for Image Super-Resolution", CVPR 2024 (arXiv 2402.19387),
section 3. Semantics ask (query), image features answer (key and value): the discriminator judges texture where, and as
what, it stands in the picture.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from utils.errors import UserError

NORM_GROUPS = 32


class SemanticFusionBlock(nn.Module):
    """One transformer block without residual connections, then pixel shuffle and a convolution.

    `upscale` is the ratio of the image grid to the semantic grid. `refine_kernel` is 3, or 4 where the image grid is
    one smaller than `upscale` times the semantic grid. Attention has one head of `inner_channels` channels.

    Raises UserError unless 32 (groups of the norm) and upscale^2 (pixel shuffle) divide `semantic_channels`.
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
        for divisor in (NORM_GROUPS, upscale**2):
            if semantic_channels % divisor:
                raise UserError(
                    f"a semantic extractor with {semantic_channels} channels was given, but the fusion block that "
                    f"upscales by {upscale} needs a number of channels divisible by {divisor}"
                )
        self.out_channels = semantic_channels // upscale**2
        self.norm = nn.GroupNorm(NORM_GROUPS, semantic_channels, eps=1e-6)
        self.semantic_in = nn.Conv2d(semantic_channels, inner_channels, 1)
        self.image_in = nn.Conv2d(image_channels, inner_channels, 1)
        self.self_attention_norm = nn.LayerNorm(inner_channels)
        self.self_attention = Attention(inner_channels)
        self.cross_attention_norm = nn.LayerNorm(inner_channels)
        self.cross_attention = Attention(inner_channels)
        self.feed_forward_norm = nn.LayerNorm(inner_channels)
        self.feed_forward = FeedForward(inner_channels)
        self.semantic_out = nn.Conv2d(inner_channels, semantic_channels, 1)
        self.shuffle = nn.PixelShuffle(upscale)
        self.refine = nn.Conv2d(self.out_channels, self.out_channels, refine_kernel, padding=1)
        # The block starts by saying nothing; it earns its influence on the discriminator.
        nn.init.zeros_(self.semantic_out.weight)
        nn.init.zeros_(self.semantic_out.bias)

    def forward(self, semantic: Tensor, image: Tensor) -> Tensor:
        """Semantic features (B, semantic_channels, h, w), image features (B, image_channels, H, W), any grids.

        Returns (B, semantic_channels / r^2, rh, rw) for r = upscale; each side is one smaller with `refine_kernel=4`.
        """
        grid = semantic.shape[-2:]
        image = self.image_in(image).flatten(2).transpose(1, 2)  # (B, HW, inner)
        # PyTorch 2.6 crashes in the backward pass of GroupNorm on a channels_last input that wants no gradient.
        x = self.semantic_in(self.norm(semantic.contiguous())).flatten(2).transpose(1, 2)  # (B, hw, inner)
        x = self.self_attention_norm(x)
        x = self.self_attention(x, x)
        x = self.cross_attention(self.cross_attention_norm(x), image)
        x = self.feed_forward(self.feed_forward_norm(x))
        x = self.semantic_out(x.transpose(1, 2).unflatten(2, grid))
        return self.refine(self.shuffle(x))


class Attention(nn.Module):
    """Single-head attention: (B, N, dim) asking (B, M, dim) -> (B, N, dim)."""

    def __init__(self, dim: int):
        super().__init__()
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(dim, dim, bias=False)
        self.to_v = nn.Linear(dim, dim, bias=False)
        self.to_out = nn.Linear(dim, dim)

    def forward(self, query: Tensor, context: Tensor) -> Tensor:
        # The head has a dimension of its own because PyTorch's fast attention kernels take four dimensions only.
        q, k, v = self.to_q(query)[:, None], self.to_k(context)[:, None], self.to_v(context)[:, None]
        return self.to_out(F.scaled_dot_product_attention(q, k, v)[:, 0])


class FeedForward(nn.Module):
    """GEGLU (Shazeer, "GLU Variants Improve Transformer", 2020), four times wider inside: (B, N, dim) -> the same."""

    def __init__(self, dim: int):
        super().__init__()
        self.proj_in = nn.Linear(dim, 8 * dim)
        self.proj_out = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj_in(x).chunk(2, dim=-1)
        return self.proj_out(value * F.gelu(gate))
