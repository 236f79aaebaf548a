"""DISTS: Ding et al., "Image Quality Assessment: Unifying Structure and Texture Similarity", TPAMI 2020."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import vgg

from sed_sr.models.losses.perceptual import IMAGENET_MEAN, IMAGENET_STD
from sed_sr.models.partial_load import load_part

CHANNELS = (3, 64, 128, 256, 512, 512)  # of the image and of the five stages of VGG16
C1 = C2 = 1e-6


class DISTSLoss(nn.Module):
    """DISTS on patches as they are; the metric resizes images to 256 pixels. All parameters are frozen.

    pyiqa has it as a metric, but downloads the weights of VGG16 itself whenever it is built. The convolutions are
    computed under autocast if it is enabled, pooling and statistics in float32.

    Args:
        state: torchvision's state dict of vgg16 (`features.0.weight`, ...) with the published `alpha` and `beta`, each
            of shape (1, 1475, 1, 1); entries that are not needed are ignored. None gives random weights, the same in
            every process, for tests.

    Raises:
        UserError: a weight in `state` is missing or has another shape.
    """

    mean: Tensor
    std: Tensor
    window: Tensor

    def __init__(self, state: dict[str, Tensor] | None = None):
        super().__init__()
        # The global generator of random numbers is restored afterwards. Only the CPU's is used.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            *layers, _ = vgg.make_layers(vgg.cfgs["D"])
        self.features = nn.Sequential(*layers)  # with the indices of torchvision
        self.alpha = nn.Parameter(torch.ones(1, sum(CHANNELS), 1, 1))
        self.beta = nn.Parameter(torch.ones(1, sum(CHANNELS), 1, 1))
        if state is not None:
            load_part(self, state, prefix="", what="the weights of DISTS")
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        hann = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("window", hann.outer(hann)[None, None], persistent=False)
        self.requires_grad_(False)

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        """The mean distance over a batch, a scalar; 0 for identical images. hr gets no gradient.

        sr, hr: (B, 3, H, W) float in [0, 1].
        """
        sr_features, hr_features = self._extract(sr), self._extract(hr.detach())
        with torch.autocast(sr.device.type, enabled=False):
            total = self.alpha.sum() + self.beta.sum()
            weights = zip(self.alpha.split(CHANNELS, dim=1), self.beta.split(CHANNELS, dim=1), strict=True)
            similarity = torch.zeros((), device=sr.device)
            for a, b, (alpha, beta) in zip(sr_features, hr_features, weights, strict=True):
                texture, structure = _similarities(a.float(), b.float())
                similarity = similarity + ((alpha * texture + beta * structure) / total).sum(dim=1).mean()
        return 1 - similarity

    def _extract(self, image: Tensor) -> list[Tensor]:
        """The image, and the features of each stage after its last ReLU."""
        x, features = (image - self.mean) / self.std, [image]
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                features.append(x)
                x = self._pool(x)
            else:
                x = layer(x)
        return [*features, x]

    def _pool(self, x: Tensor) -> Tensor:
        """L2 pooling, sqrt(g * x^2) with a window g, which replaces the maximum of VGG16."""
        with torch.autocast(x.device.type, enabled=False):  # squares may exceed the range of float16
            channels = x.shape[1]
            window = self.window.expand(channels, 1, 3, 3)
            return (F.conv2d(x.float().square(), window, stride=2, padding=1, groups=channels) + 1e-12).sqrt()


def _similarities(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Texture similarity (of means) and structure similarity of each channel, (B, C, 1, 1) each."""
    mean_a, mean_b = (x.mean(dim=(-2, -1), keepdim=True) for x in (a, b))
    a, b = a - mean_a, b - mean_b
    variances = (a.square() + b.square()).mean(dim=(-2, -1), keepdim=True)
    covariance = (a * b).mean(dim=(-2, -1), keepdim=True)
    texture = (2 * mean_a * mean_b + C1) / (mean_a.square() + mean_b.square() + C1)
    return texture, (2 * covariance + C2) / (variances + C2)
