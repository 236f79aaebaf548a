"""The perceptual loss: distances between features of a pretrained network."""

from collections.abc import Mapping, Sequence
from functools import reduce

import torch
import torchvision
from torch import Tensor, nn

from sed_sr.models.backbones import FrozenBackbone
from sed_sr.models.losses.pixel import l1_loss
from sed_sr.models.partial_load import load_part
from sed_sr.options.errors import UserError

VGG19 = "vgg19"  # torchvision's; all other models are named by their source too
# Convolution `j` of block `i` (Simonyan & Zisserman, ICLR 2015, table 1, column E) -> its index in `vgg19().features`.
VGG19_LAYERS = {
    "conv1_1": 0,
    "conv1_2": 2,
    "conv2_1": 5,
    "conv2_2": 7,
    "conv3_1": 10,
    "conv3_2": 12,
    "conv3_3": 14,
    "conv3_4": 16,
    "conv4_1": 19,
    "conv4_2": 21,
    "conv4_3": 23,
    "conv4_4": 25,
    "conv5_1": 28,
    "conv5_2": 30,
    "conv5_3": 32,
    "conv5_4": 34,
}
SED_LAYER_WEIGHTS = {"conv1_2": 0.1, "conv2_2": 0.1, "conv3_4": 1.0, "conv4_4": 1.0, "conv5_4": 1.0}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class PerceptualLoss(nn.Module):
    """Weighted sum of L1 distances between features of SR and HR in a pretrained network.

    Features of VGG19 are taken before the ReLU, those of other models where the model's layers end.

    Source: Johnson et al., ECCV 2016; features before activation: Wang et al., "ESRGAN", ECCVW 2018, section 3.3.

    Args:
        model: `vgg19`, or a model of `FrozenBackbone`.
        layer_weights: weight of each layer, such as `conv3_4` of VGG19, or by a name that `FrozenBackbone` knows.
        state: the model's weights (`utils.weights.extractor_file`), for VGG19 in torchvision's names; entries that are
            not needed are ignored. None gives random weights, the same in every process, for tests.

    Raises:
        UserError: the model or a layer is unknown or no layer is given, or a weight in `state` is missing or has
            another shape.
    """

    def __init__(
        self,
        *,
        model: str = VGG19,
        layer_weights: Mapping[str, float] = SED_LAYER_WEIGHTS,
        state: dict[str, Tensor] | None = None,
    ):
        super().__init__()
        if not layer_weights:
            raise UserError("the perceptual loss was given no layer, but needs at least one")
        self.weights = tuple(layer_weights.values())
        layers = list(layer_weights)
        self.backbone = (
            Vgg19Features(layers, state=state) if model == VGG19 else FrozenBackbone(model, layers, state=state)
        )

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        """sr, hr: (B, 3, H, W) float in [0, 1], for VGG19 with sides of at least 16 pixels -> scalar.

        hr gets no gradient.
        """
        with torch.no_grad():
            hr_features = self.backbone(hr)
        sr_features = self.backbone(sr)
        return reduce(
            torch.add,
            (weight * l1_loss(a, b) for weight, a, b in zip(self.weights, sr_features, hr_features, strict=True)),
        )


class Vgg19Features(nn.Module):
    """Features of VGG19 before the ReLU. All parameters are frozen.

    Args:
        layers: such as `conv3_4`.
        state: as of `PerceptualLoss`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, layers: Sequence[str], *, state: dict[str, Tensor] | None):
        super().__init__()
        for name in layers:
            if name not in VGG19_LAYERS:
                raise UserError(
                    f"the perceptual loss was given the layer {name!r}, but VGG19 has {', '.join(VGG19_LAYERS)}"
                )
        self.indices = [VGG19_LAYERS[name] for name in layers]
        self.features = _vgg19_features(max(self.indices) + 1, state)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, 3, H, W) float in [0, 1] -> the features of each layer, (B, channels, h, w)."""
        x = (image - self.mean) / self.std
        outputs = {}
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.indices:
                outputs[i] = x
        return [outputs[i] for i in self.indices]


def _vgg19_features(depth: int, state: dict[str, Tensor] | None) -> nn.Sequential:
    """The first `depth` layers of VGG19's convolutional part, with ReLUs that are not in place."""
    with torch.device("meta"):  # torchvision builds the whole network, whose classifier takes half a gigabyte
        features = torchvision.models.vgg19(weights=None).features
    assert isinstance(features, nn.Sequential)
    features = features[:depth]
    features.to_empty(device="cpu")
    # The global generator of random numbers is restored afterwards. Only the CPU's is used.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        for i, layer in enumerate(features):
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
            elif isinstance(layer, nn.ReLU):
                features[i] = nn.ReLU()  # torchvision's ReLUs would overwrite the features
    if state is not None:
        load_part(features, state, prefix="features.", what="VGG19 weights")
    return features
