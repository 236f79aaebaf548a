"""The MS-SSIM loss against scipy, on patches of any size, and finite gradients."""

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d

from sed_sr.models.losses.ms_ssim import ms_ssim_loss

EXPONENTS = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])  # Wang et al. 2003


def images(height, width):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 3, height // 8, width // 8, generator=generator)
    hr = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return hr + 0.05 * torch.randn(hr.shape, generator=generator), hr


def by_scipy(x, y, exponents):
    """MS-SSIM of two grey images by two-dimensional correlation in float64."""
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    window /= window.sum()

    def mean(image):
        return correlate2d(image, window, mode="valid")

    result, last = 1.0, len(exponents) - 1
    for i, exponent in enumerate(exponents):
        mx, my = mean(x), mean(y)
        vx, vy, covariance = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
        similarity = (2 * covariance + 9e-4) / (vx + vy + 9e-4)
        if i == last:
            similarity = similarity * (2 * mx * my + 1e-4) / (mx**2 + my**2 + 1e-4)
        result *= similarity.mean() ** exponent
        if i < last:
            x, y = (image.reshape(len(image) // 2, 2, -1, 2).mean((1, 3)) for image in (x, y))
    return result


@pytest.mark.parametrize(
    ("height", "width", "exponents"),
    [
        (192, 176, EXPONENTS),
        (128, 192, EXPONENTS[:4] * (EXPONENTS.sum() / EXPONENTS[:4].sum())),
        (16, 16, EXPONENTS[:1] * (EXPONENTS.sum() / EXPONENTS[0])),
    ],
)
def test_equals_scipy_with_as_many_scales_as_fit(height, width, exponents):
    sr, hr = images(height, width)
    pairs = zip(sr.double().flatten(0, 1).numpy(), hr.double().flatten(0, 1).numpy(), strict=True)
    expected = 1 - np.mean([by_scipy(x, y, exponents) for x, y in pairs])
    assert expected > 0.01
    assert ms_ssim_loss(sr, hr).item() == pytest.approx(expected, rel=1e-4)


def test_opposite_images_give_finite_gradients():
    """Their contrast terms are negative, at all scales."""
    _, hr = images(176, 176)
    for sr in (1 - hr, hr.clone(), torch.zeros_like(hr)):
        loss = ms_ssim_loss(sr.requires_grad_(), hr)
        (gradient,) = torch.autograd.grad(loss, sr)
        assert loss.isfinite()
        assert gradient.isfinite().all()


def test_negative_contrast_at_one_scale_leaves_the_gradients_of_the_others():
    """A checkerboard of opposite sign, which only the finest scale has."""
    smooth = torch.linspace(0.2, 0.8, 64).expand(1, 3, 64, 64)
    checkerboard = 0.2 * (-1) ** (torch.arange(64)[:, None] + torch.arange(64))
    sr = (smooth.mT - checkerboard).requires_grad_()
    (gradient,) = torch.autograd.grad(ms_ssim_loss(sr, smooth + checkerboard), sr)
    assert gradient.any()


def test_is_float32_under_autocast():
    sr, hr = images(64, 64)
    plain = ms_ssim_loss(sr, hr)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ms_ssim_loss(sr, hr), plain)
