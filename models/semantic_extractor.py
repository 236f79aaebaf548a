"""The frozen vision model whose features condition the discriminator.

The default is CLIP's RN50 image encoder up to `layer3`, as in the paper. Other CLIP models and every timm model that
makes feature maps from images of any size can be used instead.

Source: SeD (CVPR 2024, arXiv 2402.19387), section 3.
"""

import torch
from torch import Tensor, nn

from sed_sr.models.backbones import FrozenBackbone


class SemanticExtractor(nn.Module):
    """HR image -> semantic feature map, of one layer of a frozen model.

    Args:
        model, layer, state: as of `FrozenBackbone`.
        batch_statistics: run BatchNorm in training mode, as the released SeD code did.

    Attributes:
        channels: of the feature map.
        stride: pixels of the image per position of the map, in each direction.

    Raises:
        UserError: as by `FrozenBackbone`.
    """

    def __init__(
        self,
        *,
        model: str = "clip/RN50",
        layer: str = "16",
        state: dict[str, Tensor] | None = None,
        batch_statistics: bool = False,
    ):
        super().__init__()
        self.backbone = FrozenBackbone(model, [layer], state=state, batch_statistics=batch_statistics)
        (chosen,) = self.backbone.layers
        self.channels, self.stride = chosen.channels, chosen.stride

    @torch.no_grad()
    def forward(self, hr: Tensor) -> Tensor:
        """(B, 3, H, W) float in [0, 1] -> (B, channels, h, w), h = max(1, round(H / stride)), w likewise."""
        (features,) = self.backbone(hr)
        return features
