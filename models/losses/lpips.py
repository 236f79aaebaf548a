"""LPIPS: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018."""

import warnings

import lpips
import torch
from torch import Tensor, nn

from sed_sr.options.errors import UserError

BACKBONES = {"alex": "AlexNet", "vgg": "VGG16"}  # names in the lpips package -> in messages


class LPIPSDistance(nn.Module):
    """LPIPS, version 0.1, as a loss and as a metric. All parameters are frozen; training mode changes nothing.

    Backbone and calibrated linear layers are those of the lpips package; the latter are a part of it. The features are
    computed under autocast if it is enabled, their distances in float32. The gradient of SR is finite everywhere.

    Args:
        net: alex or vgg.
        state: torchvision's state dict of the backbone (`features.0.weight`, ...); entries that are not needed are
            ignored. None gives random weights, the same in every process, for tests.

    Raises:
        UserError: `state` is of another network.
    """

    def __init__(self, net: str = "vgg", state: dict[str, Tensor] | None = None):
        super().__init__()
        # The global generator of random numbers is restored afterwards. Only the CPU's is used.
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")  # lpips passes a deprecated argument to torchvision
            torch.default_generator.manual_seed(0)
            network = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
        self.scaling, self.features = network.scaling_layer, network.net
        # Not as convolutions, which autocast would compute in low precision. Without their dropout.
        linear = (layer.get_parameter("model.1.weight") for layer in network.lins)  # (1, C, 1, 1) each
        self.calibration = nn.ParameterList(linear)
        if state is not None:
            try:
                # torchvision's features.N is sliceM.N in lpips.
                self.features.load_state_dict(
                    {name: state[f"features.{name.partition('.')[2]}"] for name in self.features.state_dict()}
                )
            except (KeyError, RuntimeError) as error:
                raise UserError(f"the weights of LPIPS are not those of torchvision's {BACKBONES[net]}") from error
        self.requires_grad_(False)

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        """The mean distance over a batch (equation 1), a scalar; 0 for identical images. hr gets no gradient.

        sr, hr: (B, 3, H, W) float in [0, 1], sides of at least 31 pixels (alex) or 16 (vgg).
        """
        sr_features, hr_features = self._extract(sr), self._extract(hr.detach())
        with torch.autocast(sr.device.type, enabled=False):
            layers = zip(sr_features, hr_features, self.calibration, strict=True)
            return torch.stack([_distance(a.float(), b.float(), weight) for a, b, weight in layers]).sum()

    def _extract(self, image: Tensor) -> tuple[Tensor, ...]:
        return self.features(self.scaling(2 * image - 1))  # in [-1, 1]


def _distance(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """Weighted squared distance of the features, normalised at each position, averaged over positions and images."""
    return (weight * (lpips.normalize_tensor(a) - lpips.normalize_tensor(b)).square()).sum(dim=1).mean()
