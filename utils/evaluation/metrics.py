"""PSNR, SSIM and LPIPS as in the super-resolution literature, distances in deep features, and all metrics of pyiqa.

PSNR and SSIM are computed on Y of 8-bit images, with a border as wide as the scale cropped; all others on RGB,
uncropped.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sed_sr.models.backbones import FrozenBackbone, parse_model_name
from sed_sr.models.losses.lpips import LPIPSDistance
from sed_sr.options.errors import UserError
from sed_sr.utils.evaluation.pyiqa_metrics import PyiqaMetric
from sed_sr.utils.weights.checkpoint import load
from sed_sr.utils.weights.extractor_file import published_weights, read_extractor_file
from sed_sr.utils.weights.pretrained import WeightsMissing, locate

SSIM_WINDOW_PX = 11
SSIM_SIGMA_PX = 1.5


@dataclass(frozen=True)
class Metric:
    """A metric: how it is computed and displayed."""

    name: str  # in options and data files
    title: str  # in tables
    compute: Callable[..., float]  # of SR and HR, (3, H, W) uint8 RGB
    lower_is_better: bool = False
    needs_ground_truth: bool = True  # False: HR is not used, and may be None
    crops_border: bool = False  # a border as wide as the scale is ignored: `compute` has the argument `crop_border_px`
    decimals: int = 4  # in tables

    def score(self, sr: Tensor, hr: Tensor | None, *, scale: int) -> float:
        """The score of an image that was upscaled by `scale`. Raises UserError if the metric cannot score it."""
        return self.compute(sr, hr, **({"crop_border_px": scale} if self.crops_border else {}))


def psnr_y(sr: Tensor, hr: Tensor, *, crop_border_px: int = 4) -> float:
    """Peak signal-to-noise ratio of two images on Y, in dB; infinite for identical images.

    Args:
        sr, hr: (3, H, W) uint8 RGB, on any device.
        crop_border_px: width of the border that is ignored.

    Raises:
        UserError: the sizes differ, or nothing is left after cropping.
    """
    sr, hr = _cropped_luma(sr, hr, crop_border_px, min_side_px=1)
    mse = (sr - hr).square().mean().item()
    return 10 * math.log10(255**2 / mse) if mse else math.inf


def ssim_y(sr: Tensor, hr: Tensor, *, crop_border_px: int = 4) -> float:
    """Structural similarity (Wang et al., 2004) of two images on Y, in [-1, 1].

    Means, variances and covariance are computed in a Gaussian window, where it lies completely inside the image.

    Args:
        sr, hr: (3, H, W) uint8 RGB, on any device.
        crop_border_px: width of the border that is ignored.

    Raises:
        UserError: the sizes differ, or the cropped image is smaller than the window.
    """
    sr, hr = _cropped_luma(sr, hr, crop_border_px, min_side_px=SSIM_WINDOW_PX)
    moments = torch.stack([sr, hr, sr * sr, hr * hr, sr * hr])[:, None]  # (5, 1, H, W)
    offsets = torch.arange(SSIM_WINDOW_PX, dtype=sr.dtype, device=sr.device) - SSIM_WINDOW_PX // 2
    window = torch.exp(-offsets.square() / (2 * SSIM_SIGMA_PX**2))
    window = window / window.sum()
    moments = F.conv2d(F.conv2d(moments, window.view(1, 1, 1, -1)), window.view(1, 1, -1, 1))
    mean_sr, mean_hr, square_sr, square_hr, product = moments[:, 0]

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    variance_sr, variance_hr = square_sr - mean_sr**2, square_hr - mean_hr**2
    covariance = product - mean_sr * mean_hr
    luminance = (2 * mean_sr * mean_hr + c1) / (mean_sr**2 + mean_hr**2 + c1)
    structure = (2 * covariance + c2) / (variance_sr + variance_hr + c2)
    return (luminance * structure).mean().item()  # their equation 13


@dataclass(frozen=True)
class Backbone:
    """An ImageNet classifier of torchvision, of which LPIPS compares the features."""

    name: str
    lpips_name: str
    file: str
    min_side_px: int  # smaller images are empty after the last pooling
    metric_title: str


ALEXNET = Backbone("AlexNet", "alex", "alexnet-owt-7be5be79.pth", min_side_px=31, metric_title="LPIPS")
VGG16 = Backbone("VGG16", "vgg", "vgg16-397923af.pth", min_side_px=16, metric_title="LPIPS-VGG")


class LPIPS:
    """LPIPS (Zhang et al., 2018), version 0.1; lower is more similar, 0 for identical images.

    Args:
        backbone_path: torchvision's state dict of the backbone, with a verified checksum (see `locate`). The
            calibrated linear layers on top of it are part of the lpips package.
        backbone: AlexNet in papers on super-resolution.
        device: where to compute.

    Raises:
        UserError: the file cannot be read, or contains another network.
    """

    def __init__(
        self, backbone_path: str | Path, *, backbone: Backbone = ALEXNET, device: torch.device | str = "cpu"
    ) -> None:
        state = load(backbone_path, verified=True)
        try:
            network = LPIPSDistance(backbone.lpips_name, state)
        except UserError as error:
            raise UserError(
                f"{backbone_path} is not torchvision's {backbone.name}, whose weights LPIPS needs"
            ) from error
        self._network = network.to(device)
        self._device, self._min_side_px = device, backbone.min_side_px

    @torch.inference_mode()
    def __call__(self, sr: Tensor, hr: Tensor) -> float:
        """The distance of two images, (3, H, W) uint8 RGB, on any device.

        Raises:
            UserError: the sizes differ, or a side is shorter than 31 pixels (AlexNet) or 16 (VGG16).
        """
        _check_pair(sr, hr, min_side_px=self._min_side_px)
        sr, hr = (image[None].to(self._device, torch.float32) / 255 for image in (sr, hr))
        return self._network(sr, hr).item()


class FeatureDistance:
    """Distance of two images in the features of a pretrained model; lower is more similar, 0 for identical images.

    The formula is that of LPIPS without its learned weights (Zhang et al., 2018, equation 1 with w = 1): at each
    position of each layer, features are divided by their norm over the channels; the squared differences are summed
    over channels and layers and averaged over positions.

    Args:
        model: of `FrozenBackbone`; all its layers are compared.
        state: its weights.
        device: where to compute.

    Raises:
        UserError: as by `FrozenBackbone`.
    """

    def __init__(self, model: str, state: dict[str, Tensor], *, device: torch.device | str = "cpu") -> None:
        self._backbone, self._device = FrozenBackbone(model, None, state=state).to(device), device

    @torch.inference_mode()
    def __call__(self, sr: Tensor, hr: Tensor) -> float:
        """The distance of two images, (3, H, W) uint8 RGB, on any device. Raises UserError if the sizes differ."""
        _check_pair(sr, hr, min_side_px=1)
        sr_maps, hr_maps = (self._backbone(image[None].to(self._device, torch.float32) / 255) for image in (sr, hr))
        layers = [
            (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(dim=1).mean()
            for a, b in zip(sr_maps, hr_maps, strict=True)
        ]
        return torch.stack(layers).sum().item()


FORMULAS = {
    "psnr": Metric("psnr", "PSNR-Y", psnr_y, crops_border=True, decimals=2),
    "ssim": Metric("ssim", "SSIM-Y", ssim_y, crops_border=True),
}
BACKBONES = {"lpips": ALEXNET, "lpips-vgg": VGG16}
BUILT_IN = (*FORMULAS, *BACKBONES)
DEFAULT = ("psnr", "ssim", "lpips")
MODELS = ("timm/", "clip/")  # what names of models begin with, in whose features a distance is computed


def metric_weights(names: tuple[str, ...]) -> list[str]:
    """The pretrained files that these metrics need, without those that pyiqa downloads itself."""
    files = [BACKBONES[name].file for name in names if name in BACKBONES]
    return files + [published_weights(name) for name in names if name.startswith(MODELS)]


def build_metrics(
    names: tuple[str, ...] | None, *, pretrained_root: Path, device: torch.device, check_hash: bool = True
) -> dict[str, Metric]:
    """Build metrics by name; for None psnr, ssim and lpips, the latter only if its backbone can be found or downloaded.

    The name of a `FeatureDistance` is that of its model.

    Args:
        check_hash: passed to `locate`.

    Raises:
        UserError: a metric does not exist, or what it needs is not installed or cannot be downloaded.
    """
    metrics = {}
    for name in names if names is not None else DEFAULT:
        try:
            metrics[name] = _build(name, pretrained_root, device, check_hash=check_hash)
        except WeightsMissing:
            if names is not None:
                raise
    return metrics


def _build(name: str, pretrained_root: Path, device: torch.device, *, check_hash: bool) -> Metric:
    if name in FORMULAS:
        return FORMULAS[name]
    if name in BACKBONES:
        backbone = BACKBONES[name]
        path = locate(backbone.file, pretrained_root=pretrained_root, check_hash=check_hash)
        distance = LPIPS(path, backbone=backbone, device=device)
        return Metric(name, backbone.metric_title, distance, lower_is_better=True)
    if name.startswith(MODELS):
        path = locate(published_weights(name), pretrained_root=pretrained_root, check_hash=check_hash)
        distance = FeatureDistance(name, read_extractor_file(path, name), device=device)
        architecture, _, _ = parse_model_name(name)[1].partition(".")
        return Metric(name, f"{architecture} distance", distance, lower_is_better=True)
    metric = PyiqaMetric(name, device=device, built_in=BUILT_IN)
    return Metric(
        name,
        name.upper(),
        metric,
        lower_is_better=metric.lower_is_better,
        needs_ground_truth=metric.needs_ground_truth,
    )


def _cropped_luma(sr: Tensor, hr: Tensor, border_px: int, *, min_side_px: int) -> tuple[Tensor, Tensor]:
    _check_pair(sr, hr, min_side_px=min_side_px + 2 * border_px)
    height, width = sr.shape[1:]
    inside = (slice(border_px, height - border_px), slice(border_px, width - border_px))
    return _luma(sr)[inside], _luma(hr)[inside]


def _luma(image: Tensor) -> Tensor:
    """Y of ITU-R BT.601 as MATLAB's rgb2ycbcr computes it, in [16, 235], without its rounding."""
    red, green, blue = image.double()  # (H, W) each, in [0, 255]
    return (65.481 * red + 128.553 * green + 24.966 * blue) / 255 + 16


def _check_pair(sr: Tensor, hr: Tensor, *, min_side_px: int) -> None:
    assert all(image.dtype == torch.uint8 and image.ndim == 3 and len(image) == 3 for image in (sr, hr))
    if sr.shape != hr.shape:
        raise UserError(f"SR of {_size(sr)} cannot be compared with HR of {_size(hr)}: the sizes must be equal")
    if min(sr.shape[1:]) < min_side_px:
        raise UserError(f"an image of {_size(sr)} is too small for this metric, which needs at least {min_side_px} px")


def _size(image: Tensor) -> str:
    _, height, width = image.shape
    return f"{width}x{height} px"
