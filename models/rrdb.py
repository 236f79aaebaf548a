"""RRDBNet, the generator of ESRGAN: residual-in-residual dense blocks.

Source: Wang et al., "ESRGAN", ECCVW 2018, section 3.1 and figure 4. Parameters have the names of the released
`RRDB.pth` (ESRGAN, KAIR, SeD), so that such files load strictly. For x1 and x2 the x4 network works on a smaller,
pixel-unshuffled image, as in Real-ESRGAN (`RealESRGAN_x2plus.pth`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sed_sr.models.generator import Generator
from sed_sr.models.padding import pad_to_multiple

# Residuals are scaled down before they are added, so that 23 blocks without normalisation train stably (section 3.1).
RESIDUAL_SCALE = 0.2
# scale -> factor of the pixel-unshuffle before the network, factors of the upsampling at its end
RESIZING = {1: (4, (2, 2)), 2: (2, (2, 2)), 3: (1, (3,)), 4: (1, (2, 2)), 8: (1, (2, 2, 2))}


class RRDBNet(Generator):
    """The defaults are the published network for x4, 16.70 M parameters.

    Args:
        scale: 1, 2, 3, 4 or 8.
        features: channels between the blocks.
        blocks: number of residual-in-residual dense blocks.
        growth: channels added by each convolution of a dense block.

    Attributes:
        checkpointing: store only the input of each block in training and recompute the rest in the backward pass, for
            less memory and more time (Chen et al. 2016). False unless set.
    """

    def __init__(self, *, scale: int = 4, features: int = 64, blocks: int = 23, growth: int = 32):
        super().__init__()
        self.scale, self.checkpointing = scale, False
        self.unshuffle, self.upsampling = RESIZING[scale]
        self.conv_first = nn.Conv2d(3 * self.unshuffle**2, features, 3, padding=1)
        self.RRDB_trunk = nn.Sequential(*(RRDB(features, growth) for _ in range(blocks)))
        self.trunk_conv = nn.Conv2d(features, features, 3, padding=1)
        for number, _ in enumerate(self.upsampling, 1):
            self.add_module(f"upconv{number}", nn.Conv2d(features, features, 3, padding=1))
        self.HRconv = nn.Conv2d(features, features, 3, padding=1)
        self.conv_last = nn.Conv2d(features, 3, 3, padding=1)

    @property
    def repeated_blocks(self) -> list[nn.Module]:
        """The blocks that are equal except for their weights."""
        return list(self.RRDB_trunk)

    def forward(self, lr: Tensor) -> Tensor:
        """(B, 3, H, W) float in [0, 1] -> (B, 3, scale * H, scale * W) float, about [0, 1] but not clipped.

        Any H, W >= 1: images that the unshuffling does not divide are padded by reflection.
        """
        height, width = lr.shape[-2:]
        if self.unshuffle > 1:
            lr = F.pixel_unshuffle(pad_to_multiple(lr, self.unshuffle), self.unshuffle)
        x = self.conv_first(lr)
        x = x + self.trunk_conv(self._trunk(x))
        for number, factor in enumerate(self.upsampling, 1):
            upconv = getattr(self, f"upconv{number}")
            x = _lrelu(upconv(F.interpolate(x, scale_factor=factor, mode="nearest")))
        sr = self.conv_last(_lrelu(self.HRconv(x)))
        return sr[..., : self.scale * height, : self.scale * width]

    def _trunk(self, x: Tensor) -> Tensor:
        for block in self.RRDB_trunk:
            if self.checkpointing and self.training:
                # Blocks draw no random numbers, so there is no state to preserve.
                x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x)
        return x


class RRDB(nn.Module):
    """Residual-in-residual dense block: (B, features, H, W) -> the same shape."""

    def __init__(self, features: int, growth: int):
        super().__init__()
        self.RDB1 = DenseBlock(features, growth)
        self.RDB2 = DenseBlock(features, growth)
        self.RDB3 = DenseBlock(features, growth)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.RDB3(self.RDB2(self.RDB1(x))), alpha=RESIDUAL_SCALE)


class DenseBlock(nn.Module):
    """Five convolutions, each with the outputs of all earlier ones as input: (B, features, H, W) -> the same shape."""

    def __init__(self, features: int, growth: int):
        super().__init__()
        self.conv1 = nn.Conv2d(features, growth, 3, padding=1)
        self.conv2 = nn.Conv2d(features + growth, growth, 3, padding=1)
        self.conv3 = nn.Conv2d(features + 2 * growth, growth, 3, padding=1)
        self.conv4 = nn.Conv2d(features + 3 * growth, growth, 3, padding=1)
        self.conv5 = nn.Conv2d(features + 4 * growth, features, 3, padding=1)
        # Small initial weights, as published: every block starts close to the identity.
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4, self.conv5):
            assert conv.bias is not None
            nn.init.kaiming_normal_(conv.weight)
            conv.weight.data.mul_(0.1)
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        dense = x
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            dense = torch.cat((dense, _lrelu(conv(dense))), dim=1)
        return torch.add(x, self.conv5(dense), alpha=RESIDUAL_SCALE)


def _lrelu(x: Tensor) -> Tensor:
    # In place, because its input is always a convolution's output that is not used elsewhere.
    return F.leaky_relu(x, negative_slope=0.2, inplace=True)
