"""SwinIR: a generator of shifted-window transformer blocks.

Source: Liang et al., "SwinIR", ICCVW 2021, section 3; windows and shifts after Liu et al., "Swin Transformer", ICCV
2021, section 3.2. Parameters and buffers have the names of the released files (classical SR:
`001_classicalSR_DF2K_s64w8_SwinIR-M_x4.pth`, real SR: `003_realSR_..._SwinIR-M_x4_GAN.pth`), so that such files load
strictly, and files saved here load in other projects.

No branch of the forward pass depends on the size of the image, so that an exported program works for all sizes.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sed_sr.models.generator import Generator
from sed_sr.models.padding import pad_to_multiple
from sed_sr.options.errors import UserError

RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K
UPSAMPLER_SCALES = {
    "pixelshuffle": (2, 3, 4, 8),
    "pixelshuffledirect": (2, 3, 4, 8),
    "nearest+conv": (2, 4, 8),
    "none": (1,),
}
UPSAMPLER_FEATURES = 64
TRAINING_PX = 64  # side of the LR patches for which the released file has the shift mask


class SwinIR(Generator):
    """The defaults are SwinIR-M for x4, 11.90 M parameters.

    The buffers `attn_mask` and `relative_position_index` depend on the window only. They are in the state dict because
    other projects expect them there. Loading ignores those of a file, so that files trained with other patch sizes load
    too.

    Args:
        scale: 1, 2, 3, 4 or 8; `UPSAMPLER_SCALES` has those of each upsampler.
        embed_dim: channels of the transformer blocks.
        depths: number of transformer blocks of each residual group.
        heads: number of attention heads of each residual group; each divides `embed_dim`.
        window: side of an attention window in LR pixels.
        mlp_ratio: hidden channels of an MLP, divided by `embed_dim`.
        drop_path: probability of dropping the residuals of the last block for a sample in training. It increases
            linearly from 0 at the first block.
        upsampler: as published for classical SR ("pixelshuffle"), lightweight SR ("pixelshuffledirect"), real SR
            ("nearest+conv") and denoising ("none").
        resi_connection: "1conv", or "3conv" for the three convolutions that end each group in SwinIR-L.

    Attributes:
        checkpointing: store only the input of each block in training and recompute the rest in the backward pass, for
            less memory and more time (Chen et al. 2016). False unless set.

    Raises:
        UserError: `depths` and `heads` differ in length, a number of heads does not divide `embed_dim`, or the
            upsampler does not have the scale.
    """

    mean: Tensor
    keep_probability: Tensor

    def __init__(
        self,
        *,
        scale: int = 4,
        embed_dim: int = 180,
        depths: tuple[int, ...] = (6,) * 6,
        heads: tuple[int, ...] = (6,) * 6,
        window: int = 8,
        mlp_ratio: float = 2.0,
        drop_path: float = 0.1,
        upsampler: str = "pixelshuffle",
        resi_connection: str = "1conv",
    ):
        super().__init__()
        if len(depths) != len(heads):
            raise UserError(
                f"SwinIR was given {len(depths)} depths and {len(heads)} heads, but needs the same number of both"
            )
        if any(embed_dim % n for n in heads):
            raise UserError(f"SwinIR was given embed_dim {embed_dim}, but needs a multiple of each of {heads} heads")
        if scale not in UPSAMPLER_SCALES[upsampler]:
            able = " or ".join(name for name, scales in UPSAMPLER_SCALES.items() if scale in scales)
            raise UserError(f"SwinIR was given the upsampler {upsampler}; with scale {scale} it should be {able}")
        self.scale, self.window, self.upsampler, self.checkpointing = scale, window, upsampler, False
        self.register_buffer("mean", torch.tensor(RGB_MEAN).view(1, 3, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(3, embed_dim, 3, padding=1)
        self.patch_embed = PatchEmbed(embed_dim)
        self.depths = depths
        self.register_buffer("keep_probability", 1 - torch.linspace(0, drop_path, sum(depths)), persistent=False)
        self.layers = nn.ModuleList(
            ResidualGroup(
                embed_dim, depth=depth, heads=n, window=window, mlp_ratio=mlp_ratio, resi_connection=resi_connection
            )
            for depth, n in zip(depths, heads, strict=True)
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.conv_after_body = _end_of_residual(embed_dim, resi_connection)
        self._add_upsampler(embed_dim)
        self.apply(_init_linear)
        self.register_load_state_dict_pre_hook(_keep_recomputed_buffers)

    def _add_upsampler(self, embed_dim: int) -> None:
        features, doublings = UPSAMPLER_FEATURES, self.scale.bit_length() - 1
        if self.upsampler == "none":
            self.conv_last = _conv(embed_dim, 3)
            return
        if self.upsampler == "pixelshuffledirect":
            self.upsample = nn.Sequential(_conv(embed_dim, 3 * self.scale**2), nn.PixelShuffle(self.scale))
            return
        self.conv_before_upsample = nn.Sequential(_conv(embed_dim, features), nn.LeakyReLU(inplace=True))
        if self.upsampler == "pixelshuffle":
            factors = (3,) if self.scale == 3 else (2,) * doublings
            self.upsample = nn.Sequential()
            for factor in factors:
                self.upsample.extend((_conv(features, factor**2 * features), nn.PixelShuffle(factor)))
        else:
            self.conv_ups = [f"conv_up{number}" for number in range(1, 1 + doublings)]
            for name in self.conv_ups:
                self.add_module(name, _conv(features, features))
            self.conv_hr = _conv(features, features)
        self.conv_last = _conv(features, 3)

    @property
    def repeated_blocks(self) -> list[nn.Module]:
        """The blocks that are equal except for their weights and whether their windows are shifted."""
        return [module for module in self.modules() if isinstance(module, SwinBlock)]

    def forward(self, lr: Tensor) -> Tensor:
        """(B, 3, H, W) float in [0, 1] -> (B, 3, scale * H, scale * W) float, about [0, 1] but not clipped.

        Any H, W >= 1: images that the window does not divide are padded by reflection.
        """
        height, width = lr.shape[-2:]
        image = pad_to_multiple(lr, self.window) - self.mean
        x = self.conv_first(image)
        x = x + self.conv_after_body(self._body(x))
        sr = image + self.conv_last(x) if self.upsampler == "none" else self._upsample(x)
        return (sr + self.mean)[..., : self.scale * height, : self.scale * width]

    def _body(self, x: Tensor) -> Tensor:
        mask = shift_mask(x.shape[2], x.shape[3], self.window, x.device).to(x.dtype)
        factors = self._draw_residual_factors(len(x)).split(self.depths) if self.training else [None] * len(self.depths)
        x = self.patch_embed(x.permute(0, 2, 3, 1))  # (B, H, W, C), the layout between the convolutions
        for group, group_factors in zip(self.layers, factors, strict=True):
            x = group(x, mask, group_factors, recomputed=self.checkpointing and self.training)
        return self.norm(x).permute(0, 3, 1, 2)

    def _draw_residual_factors(self, batch: int) -> Tensor:
        """(blocks, 2, B, 1, 1, 1): 0 if a residual is dropped for a sample, else 1 / the probability of keeping it.

        Stochastic depth (Huang et al., ECCV 2016). All factors are drawn here and not in the blocks, so that blocks
        are compiled once for all and recomputed without restoring a random state.
        """
        keep = self.keep_probability.view(-1, 1, 1, 1, 1, 1).expand(-1, 2, batch, 1, 1, 1)
        return torch.bernoulli(keep) / keep.clamp(min=torch.finfo(keep.dtype).tiny)

    def _upsample(self, x: Tensor) -> Tensor:
        """(B, embed_dim, H, W) -> (B, 3, scale * H, scale * W)."""
        if self.upsampler == "pixelshuffledirect":
            return self.upsample(x)
        x = self.conv_before_upsample(x)
        if self.upsampler == "pixelshuffle":
            return self.conv_last(self.upsample(x))
        for name in self.conv_ups:
            x = _lrelu(getattr(self, name)(F.interpolate(x, scale_factor=2, mode="nearest")))
        return self.conv_last(_lrelu(self.conv_hr(x)))


class PatchEmbed(nn.Module):
    """Swin's patch embedding for patches of one pixel, which is only the normalisation."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class ResidualGroup(nn.Module):
    """Residual Swin transformer block, RSTB (SwinIR, equation 7): (B, H, W, dim) and `shift_mask` -> the same shape.

    `factors`: (blocks, 2, B, 1, 1, 1), of the residuals of its transformer blocks; None: 1.
    `recomputed`: store only the inputs of its transformer blocks for the backward pass.
    """

    def __init__(self, dim: int, *, depth: int, heads: int, window: int, mlp_ratio: float, resi_connection: str):
        super().__init__()
        self.residual_group = SwinBlocks(
            # Every second block shifts its windows by half, so that neighbouring windows exchange information.
            SwinBlock(dim, heads=heads, window=window, shifted=i % 2 == 1, mlp_ratio=mlp_ratio)
            for i in range(depth)
        )
        self.conv = _end_of_residual(dim, resi_connection)

    def forward(self, x: Tensor, mask: Tensor, factors: Tensor | None, *, recomputed: bool) -> Tensor:
        body = x
        for i, block in enumerate(self.residual_group.blocks):
            inputs = body, mask, None if factors is None else factors[i]
            if recomputed:
                body = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
            else:
                body = block(*inputs)
        return x + self.conv(body.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class SwinBlocks(nn.Module):
    """The blocks of a group: a level of the released names, `residual_group.blocks`."""

    def __init__(self, blocks: Iterable["SwinBlock"]):
        super().__init__()
        self.blocks = nn.Sequential(*blocks)


class SwinBlock(nn.Module):
    """(Shifted-)window attention and an MLP, each residual: (B, H, W, dim) and `shift_mask` -> the same shape.

    The window divides H and W. `factors`: (2, B, 1, 1, 1), of the two residuals; None: 1.
    """

    def __init__(self, dim: int, *, heads: int, window: int, shifted: bool, mlp_ratio: float):
        super().__init__()
        self.window = window
        self.shift = window // 2 if shifted else 0
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, round(dim * mlp_ratio))
        side = _round_up(TRAINING_PX, window)
        # Only for the state dict: the forward pass computes the mask of the image's size.
        self.register_buffer("attn_mask", shift_mask(side, side, window) if shifted else None)

    def forward(self, x: Tensor, mask: Tensor, factors: Tensor | None = None) -> Tensor:
        attended = self._attend(self.norm1(x), mask)
        x = x + (attended if factors is None else attended * factors[0].to(attended.dtype))
        transformed = self.mlp(self.norm2(x))
        return x + (transformed if factors is None else transformed * factors[1].to(transformed.dtype))

    def _attend(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        if self.shift:
            x = x.roll((-self.shift, -self.shift), dims=(1, 2))
        windows = x.view(batch, height // self.window, self.window, width // self.window, self.window, dim)
        windows = windows.transpose(2, 3).reshape(-1, self.window**2, dim)  # (B * windows, tokens, dim)
        windows = self.attn(windows, mask if self.shift else None)
        x = windows.view(batch, height // self.window, width // self.window, self.window, self.window, dim)
        x = x.transpose(2, 3).reshape(batch, height, width, dim)
        if self.shift:
            x = x.roll((self.shift, self.shift), dims=(1, 2))
        return x


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with a learned bias for each relative position."""

    relative_position_index: Tensor

    def __init__(self, dim: int, heads: int, window: int):
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", _relative_position_index(window))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x: (B * W, T, dim) for W windows of T tokens; mask: (W, T, T), added to the logits -> (B * W, T, dim)."""
        total, tokens, dim = x.shape
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)  # (heads, T, T)
        bias = bias.contiguous()  # otherwise the logits would inherit its layout
        # (3, B * W, heads, T, dim / heads)
        q, k, v = self.qkv(x).view(total, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).contiguous()
        # F.scaled_dot_product_attention takes three times as long in training, because none of its fast CPU kernels
        # supports a learned bias (benchmarks/RESULTS.md).
        logits = torch.add(bias.to(q.dtype), q @ k.transpose(-2, -1), alpha=(dim // self.heads) ** -0.5)
        if mask is not None:
            # In place. All images have the same masks.
            logits.unflatten(0, (-1, mask.shape[0])).add_(mask[:, None])
        # The kernel computes in float32 internally. Without a dtype, autocast on a GPU would return float32, which
        # takes more memory and a cast for the next product.
        x = logits.softmax(dim=-1, dtype=logits.dtype) @ v
        return self.proj(x.transpose(1, 2).reshape(total, tokens, dim))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


def shift_mask(height: int, width: int, window: int, device: torch.device | None = None) -> Tensor:
    """(W, T, T) for W windows of T tokens: -100 for two tokens that are neighbours by the cyclic shift only, else 0."""

    def strips(size):
        # After the shift, the last window has pixels from both ends of the image, marked 1 and 2. All others are 0.
        position = torch.arange(size, device=device)
        return (position >= size - window).int() + (position >= size - window // 2).int()

    region = 3 * strips(height)[:, None] + strips(width)  # (height, width)
    region = region.view(height // window, window, width // window, window).transpose(1, 2).reshape(-1, window**2)
    return (region[:, :, None] != region[:, None, :]).float() * -100.0


def _relative_position_index(window: int) -> Tensor:
    """(T, T) int64: for each pair of tokens in a window, the row of its bias in the table."""
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    y, x = y.flatten(), x.flatten()
    dy = y[:, None] - y + window - 1  # 0 .. 2 * window - 2
    dx = x[:, None] - x + window - 1
    return dy * (2 * window - 1) + dx


def _keep_recomputed_buffers(module: nn.Module, state_dict: dict, prefix: str, *_) -> None:
    for name, buffer in module.named_buffers():
        if name.endswith(("attn_mask", "relative_position_index")):
            state_dict[prefix + name] = buffer


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _end_of_residual(dim: int, resi_connection: str) -> nn.Module:
    """The convolution, or the three of SwinIR-L, before a residual is added: (B, dim, H, W) -> the same shape."""
    if resi_connection == "1conv":
        return _conv(dim, dim)
    inner = dim // 4
    slope = nn.LeakyReLU(negative_slope=0.2, inplace=True)
    return nn.Sequential(_conv(dim, inner), slope, nn.Conv2d(inner, inner, 1), slope, _conv(inner, dim))


def _lrelu(x: Tensor) -> Tensor:
    # In place, because its input is always a convolution's output that is not used elsewhere.
    return F.leaky_relu(x, negative_slope=0.2, inplace=True)


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def _round_up(size: int, multiple: int) -> int:
    return (size + multiple - 1) // multiple * multiple
