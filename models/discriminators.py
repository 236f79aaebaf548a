"""PatchGAN and U-Net discriminators, plain or conditioned on semantic features (SeD_P and SeD_U).

Sources: SeD (CVPR 2024, arXiv 2402.19387), section 3; PatchGAN: Isola et al., "pix2pix", CVPR 2017; U-Net: Wang et
al., "Real-ESRGAN", ICCVW 2021; spectral norm: Miyato et al., ICLR 2018. The plain discriminators are the paper's
baselines P and U: the same networks without `fusion` and `merge`.

Semantic features may come from any extractor, with `semantic_channels` channels and one position per `semantic_stride`
pixels of the image in each direction. The paper's CLIP RN50 has 1024 and 16.

Several images, such as SR and HR, may share semantic features: with k * B images and B semantic feature maps, image n
uses map n mod B. Layers that depend on the semantic features alone run once for all k images.
"""

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sed_sr.models.semantic_fusion import SemanticConcatenation, SemanticFusionBlock
from sed_sr.models.spectral_norm import spectral_norm
from sed_sr.options.errors import UserError

SIDE_MULTIPLE_PX = 16  # image sides must be multiples of it

Fusion = Literal["cross-attention", "concatenation"]  # the paper's SeFB; the ablation without attention


class PatchDiscriminator(nn.Module):
    """PatchGAN: one logit for each of overlapping patches. With `semantic_channels=None`, the plain baseline.

    `features` is the number of channels of the first layer, 64 in the paper; later layers have 2, 4 and 8 times it.
    Initial weights of convolutions and linear layers are from N(0, 0.02), initial biases are 0.
    """

    def __init__(
        self,
        *,
        semantic_channels: int | None = 1024,
        semantic_stride: int = 16,
        fusion: Fusion = "cross-attention",
        features: int = 64,
    ):
        super().__init__()
        self.semantic_channels = semantic_channels
        c1, c2, c3, c4 = features, 2 * features, 4 * features, 8 * features
        self.conv0 = nn.Conv2d(3, c1, 4, stride=2, padding=1)
        self.conv1 = nn.Conv2d(c1, c2, 4, stride=2, padding=1)
        self.conv2 = nn.Conv2d(c2, c3, 4, stride=2, padding=1)
        self.conv3 = nn.Conv2d(c3, c4, 4, stride=1, padding=1)
        self.conv4 = nn.Conv2d(c4, 1, 4, stride=1, padding=1)
        pair = partial(
            _fusion_and_merge, fusion=fusion, semantic_channels=semantic_channels, semantic_stride=semantic_stride
        )
        self.fusion1, self.merge1 = pair(c2, stride=4)
        self.fusion2, self.merge2 = pair(c3, stride=8)
        # The even kernel of conv3, with stride 1, removes one row and one column; that of `fusion3` does the same.
        self.fusion3, self.merge3 = pair(c4, stride=8, refine_kernel=4)

        self.apply(_init_normal)
        # After the initialisation, because the first power iterations use the weights.
        for layer in (self.conv1, self.conv2, self.conv3, self.merge1, self.merge2, self.merge3):
            if layer is not None:
                spectral_norm(layer)

    def forward(
        self, image: Tensor, semantic: Tensor | None = None, *, return_features: bool = False
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Logits, one for each patch, without sigmoid.

        Args:
            image: (k * B, 3, H, W) float in [0, 1], H and W multiples of 16, at least 32.
            semantic: (B, semantic_channels, h, w) with any grid; None for the plain discriminator.
            return_features: also return the activations after each layer but the last.

        Returns:
            (k * B, 1, H/8 - 2, W/8 - 2): 30x30 for 256x256.

        Raises:
            UserError: the image has another size.
        """
        _check_inputs(image, semantic, self.semantic_channels, min_px=32)
        x0 = _lrelu(self.conv0(image))
        x1 = _lrelu(_fuse(self.conv1(x0), semantic, self.fusion1, self.merge1))  # H/4
        x2 = _lrelu(_fuse(self.conv2(x1), semantic, self.fusion2, self.merge2))  # H/8
        x3 = _lrelu(_fuse(self.conv3(x2), semantic, self.fusion3, self.merge3))  # H/8 - 1
        logits = self.conv4(x3)
        return (logits, [x0, x1, x2, x3]) if return_features else logits


class UNetDiscriminator(nn.Module):
    """U-Net: one logit for each pixel. With `semantic_channels=None`, the plain baseline.

    `features` is the number of channels at full resolution, 64 in the paper; lower resolutions have 2, 4 and 8 times as
    many. PyTorch's default initialisation, except for the zero-initialised output projections of the fusion blocks.
    """

    def __init__(
        self,
        *,
        semantic_channels: int | None = 1024,
        semantic_stride: int = 16,
        fusion: Fusion = "cross-attention",
        features: int = 64,
    ):
        super().__init__()
        self.semantic_channels = semantic_channels
        c0, c1, c2, c3 = features, 2 * features, 4 * features, 8 * features
        self.conv0 = nn.Conv2d(3, c0, 3, padding=1)
        self.conv1 = spectral_norm(nn.Conv2d(c0, c1, 4, stride=2, padding=1, bias=False))
        self.conv2 = spectral_norm(nn.Conv2d(c1, c2, 4, stride=2, padding=1, bias=False))
        self.conv3 = spectral_norm(nn.Conv2d(c2, c3, 4, stride=2, padding=1, bias=False))
        self.conv4 = spectral_norm(nn.Conv2d(c3, c2, 3, padding=1, bias=False))
        self.conv5 = spectral_norm(nn.Conv2d(c2, c1, 3, padding=1, bias=False))
        self.conv6 = spectral_norm(nn.Conv2d(c1, c0, 3, padding=1, bias=False))
        self.conv7 = spectral_norm(nn.Conv2d(c0, c0, 3, padding=1, bias=False))
        self.conv8 = spectral_norm(nn.Conv2d(c0, c0, 3, padding=1, bias=False))
        self.conv9 = nn.Conv2d(c0, 1, 3, padding=1)
        pair = partial(
            _fusion_and_merge, fusion=fusion, semantic_channels=semantic_channels, semantic_stride=semantic_stride
        )
        self.fusion1, self.merge1 = pair(c1, stride=2)
        self.fusion2, self.merge2 = pair(c2, stride=4)
        self.fusion3, self.merge3 = pair(c3, stride=8)
        for merge in (self.merge1, self.merge2, self.merge3):
            if merge is not None:
                spectral_norm(merge)

    def forward(
        self, image: Tensor, semantic: Tensor | None = None, *, return_features: bool = False
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Logits, one for each pixel, without sigmoid.

        Args:
            image: (k * B, 3, H, W) float in [0, 1], H and W multiples of 16.
            semantic: (B, semantic_channels, h, w) with any grid; None for the plain discriminator.
            return_features: also return the activations after each layer but the last.

        Returns:
            (k * B, 1, H, W)

        Raises:
            UserError: the image has another size.
        """
        _check_inputs(image, semantic, self.semantic_channels, min_px=16)
        x0 = _lrelu(self.conv0(image))
        x1 = _lrelu(self.conv1(x0))  # H/2
        x2 = _lrelu(self.conv2(x1))  # H/4
        # The paper's figure shows the fusion blocks in the encoder; the released code has them in the decoder.
        x3 = _lrelu(_fuse(self.conv3(x2), semantic, self.fusion3, self.merge3))  # H/8
        x4 = _lrelu(self.conv4(_upsample(x3)))
        x5 = _lrelu(self.conv5(_upsample(_fuse(x4 + x2, semantic, self.fusion2, self.merge2))))
        x6 = _lrelu(self.conv6(_upsample(_fuse(x5 + x1, semantic, self.fusion1, self.merge1))))
        x7 = _lrelu(self.conv7(x6 + x0))
        x8 = _lrelu(self.conv8(x7))
        logits = self.conv9(x8)
        return (logits, [x0, x1, x2, x3, x4, x5, x6, x7, x8]) if return_features else logits


@torch.no_grad()
def ignore_semantics(discriminator: nn.Module) -> None:
    """Let a semantic discriminator, in training mode, return the logits of the plain one with the same other layers.

    The convolutions that merge image features with those of the fusion blocks become the identity of the former.
    Training goes on to change them.
    """
    for merge in (discriminator.merge1, discriminator.merge2, discriminator.merge3):
        assert isinstance(merge, nn.Conv2d)
        assert merge.bias is not None
        nn.init.dirac_(merge.get_parameter("parametrizations.weight.original"))
        nn.init.zeros_(merge.bias)
        # One power iteration, which finds singular vectors at once, because all singular values are 1.
        merge.get_submodule("parametrizations.weight")()


def _fusion_and_merge(
    channels: int,
    *,
    stride: int,
    fusion: Fusion,
    semantic_channels: int | None,
    semantic_stride: int,
    refine_kernel: int = 3,
) -> tuple[nn.Module, nn.Conv2d] | tuple[None, None]:
    """A fusion block for `channels` image features at `stride`, and the convolution that merges both to `channels`."""
    if semantic_channels is None:
        return None, None
    blocks = {
        "cross-attention": partial(SemanticFusionBlock, image_channels=channels),
        "concatenation": SemanticConcatenation,
    }
    block = blocks[fusion](
        semantic_channels=semantic_channels,
        upscale=max(1, round(semantic_stride / stride)),
        refine_kernel=refine_kernel,
    )
    return block, nn.Conv2d(channels + block.out_channels, channels, 3, padding=1)


def _fuse(x: Tensor, semantic: Tensor | None, fusion: nn.Module | None, merge: nn.Module | None) -> Tensor:
    return x if fusion is None or merge is None else merge(torch.cat((x, fusion(semantic, x)), dim=1))


def _check_inputs(image: Tensor, semantic: Tensor | None, semantic_channels: int | None, *, min_px: int) -> None:
    batch, _, height, width = image.shape
    if height % SIDE_MULTIPLE_PX or width % SIDE_MULTIPLE_PX or min(height, width) < min_px:
        raise UserError(
            f"the discriminator was given images of {height}x{width} pixels, but needs sides that are multiples of "
            f"{SIDE_MULTIPLE_PX}, at least {min_px}: choose another patch size"
        )
    assert (semantic is None) == (semantic_channels is None), "semantic features are for semantic discriminators only"
    # Assertions, because the discriminator is built for its extractor: no option can cause a mismatch.
    assert semantic is None or (batch % semantic.shape[0] == 0 and semantic.shape[1] == semantic_channels), (
        f"semantic features of shape {tuple(semantic.shape)} for {batch} images and {semantic_channels} channels"
    )


def _init_normal(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _lrelu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, negative_slope=0.2)


def _upsample(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
