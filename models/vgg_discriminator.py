"""The VGG-style discriminator of ESRGAN (Wang et al., ECCVW 2018), with the layers and names of BasicSR's."""

import torch.nn.functional as F
from torch import Tensor, nn

from sed_sr.options.errors import UserError

WIDTHS = {128: (1, 2, 4, 8, 8), 256: (1, 2, 4, 8, 8, 8)}  # side of an image -> channels of each level / `features`
LAST_PX = 4  # side after the last level
HIDDEN = 100  # outputs of the first linear layer


class VGGDiscriminator(nn.Module):
    """One logit for each image. Every level halves the image; the levels end in two linear layers.

    It has BatchNorm, so that in training mode a logit also depends on the other images of the batch: real and fake
    images are given in batches of their own. It takes no semantic features. Initial weights are PyTorch's default.

    Args:
        image_px: side of the images, 128 or 256.
        features: channels of the first level, 64 in the paper; later levels have up to 8 times as many.
    """

    def __init__(self, *, image_px: int = 128, features: int = 64):
        super().__init__()
        self.image_px, self.levels = image_px, len(WIDTHS[image_px])
        channels = 3
        for level, width in enumerate(features * factor for factor in WIDTHS[image_px]):
            self.add_module(f"conv{level}_0", nn.Conv2d(channels, width, 3, padding=1, bias=level == 0))
            self.add_module(f"bn{level}_0", nn.BatchNorm2d(width) if level > 0 else nn.Identity())
            self.add_module(f"conv{level}_1", nn.Conv2d(width, width, 4, stride=2, padding=1, bias=False))
            self.add_module(f"bn{level}_1", nn.BatchNorm2d(width))
            channels = width
        self.linear1 = nn.Linear(channels * LAST_PX**2, HIDDEN)
        self.linear2 = nn.Linear(HIDDEN, 1)

    def forward(
        self, image: Tensor, semantic: Tensor | None = None, *, return_features: bool = False
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Logits, without sigmoid.

        Args:
            image: (B, 3, image_px, image_px) float in [0, 1].
            semantic: None, as of every plain discriminator.
            return_features: also return the activations after each convolution.

        Returns:
            (B, 1)

        Raises:
            UserError: the image has another size.
        """
        assert semantic is None
        height, width = image.shape[2:]
        if (height, width) != (self.image_px, self.image_px):
            raise UserError(
                f"the discriminator was given images of {height}x{width} pixels, but was built for "
                f"{self.image_px}x{self.image_px}: choose another patch size"
            )
        x, features = image, []
        for level in range(self.levels):
            for half in (0, 1):
                x = self.get_submodule(f"conv{level}_{half}")(x)
                x = _lrelu(self.get_submodule(f"bn{level}_{half}")(x))
                features.append(x)
        logits = self.linear2(_lrelu(self.linear1(x.flatten(1))))
        return (logits, features) if return_features else logits


def _lrelu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, negative_slope=0.2)
