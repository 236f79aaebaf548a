import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import convolve
from scipy.special import gamma
from scipy.stats import multivariate_normal

from sed_sr.data.degradation.kernels import (
    blur,
    gaussian_kernel,
    generalized_gaussian_kernel,
    identity_kernel,
    plateau_kernel,
    sinc_kernel,
    stack_kernels,
)


def covariance(sigma_px, angle):
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return rotation @ np.diag(np.square(sigma_px)) @ rotation.T


def stacked(kernels):
    return torch.from_numpy(stack_kernels(kernels))


def second_moments(kernel):
    """Covariance of a kernel taken as a distribution over (x, y)."""
    y, x = np.indices(kernel.shape) - len(kernel) // 2
    places = np.stack((x.ravel(), y.ravel()))
    return places * kernel.ravel() @ places.T


@pytest.mark.parametrize("angle", [0.0, 0.7, -2.5, math.pi / 2])
def test_gaussian_is_the_normal_density_of_its_covariance(angle):
    kernel = gaussian_kernel(21, sigma_px=(3.0, 1.2), angle=angle)
    y, x = np.indices(kernel.shape) - 10
    density = multivariate_normal(cov=covariance((3.0, 1.2), angle)).pdf(np.stack((x, y), axis=-1))
    np.testing.assert_allclose(kernel, density / density.sum(), rtol=1e-9)


@pytest.mark.parametrize("beta", [0.5, 0.8, 1.0, 2.0, 4.0])
def test_generalized_gaussian_has_the_covariance_of_its_definition(beta):
    # In two dimensions q is spread like exp(-q^beta / 2) on q > 0, and the covariance is S E[q] / 2.
    mean_q = 2 ** (1 / beta) * gamma(2 / beta) / gamma(1 / beta)
    sigma_px = (4.0, 2.5) if beta < 1 else (12.0, 7.0)  # in pixels large and in the kernel small
    kernel = generalized_gaussian_kernel(601 if beta < 1 else 151, sigma_px=sigma_px, beta=beta, angle=0.6)
    np.testing.assert_allclose(second_moments(kernel), covariance(sigma_px, 0.6) * mean_q / 2, rtol=5e-3)


@pytest.mark.parametrize("sigma_px", [(2.0, 2.0), (3.0, 0.7)])
def test_generalized_gaussian_of_beta_1_is_the_gaussian(sigma_px):
    general = generalized_gaussian_kernel(15, sigma_px=sigma_px, beta=1.0, angle=1.1)
    np.testing.assert_allclose(general, gaussian_kernel(15, sigma_px=sigma_px, angle=1.1), rtol=1e-12)


@pytest.mark.parametrize("beta", [1.0, 1.5, 2.0])
def test_plateau_follows_its_definition(beta):
    kernel = plateau_kernel(21, sigma_px=(4.0, 2.0), beta=beta, angle=math.pi / 2)
    height = kernel[10, 10]
    # one and two standard deviations along the axes, which a quarter of a turn exchanges
    assert kernel[14, 10] == pytest.approx(height / 2)
    assert kernel[10, 12] == pytest.approx(height / 2)
    assert kernel[18, 10] == pytest.approx(height / (1 + 4**beta))
    assert kernel[10, 14] == pytest.approx(height / (1 + 4**beta))


@pytest.mark.parametrize(
    "kernel",
    [
        gaussian_kernel(13, sigma_px=(2.0, 2.0)),
        generalized_gaussian_kernel(13, sigma_px=(2.0, 2.0), beta=0.6),
        plateau_kernel(13, sigma_px=(2.0, 2.0), beta=1.7),
        sinc_kernel(2.0, 13),
    ],
    ids=["gaussian", "generalized", "plateau", "sinc"],
)
def test_isotropic_kernels_are_symmetric(kernel):
    np.testing.assert_allclose(np.rot90(kernel), kernel, atol=1e-15)
    np.testing.assert_allclose(kernel.T, kernel, atol=1e-15)
    assert kernel[6, 11] == pytest.approx(kernel[9, 10])  # both 5 px from the centre
    assert kernel.sum() == pytest.approx(1)


@pytest.mark.parametrize("cutoff", [math.pi / 5, math.pi / 3, 2.0, 2.8])
def test_sinc_passes_all_frequencies_below_its_cutoff_and_none_above(cutoff):
    size_px = 801
    spectrum = np.abs(np.fft.fft2(sinc_kernel(cutoff, size_px)))
    frequencies = 2 * math.pi * np.fft.fftfreq(size_px)
    radius = np.hypot(*np.meshgrid(frequencies, frequencies))
    np.testing.assert_allclose(spectrum[radius < 0.95 * cutoff], 1, atol=0.05)
    np.testing.assert_allclose(spectrum[radius > 1.05 * cutoff], 0, atol=0.05)


@pytest.mark.parametrize("sigma_px", [(0.2, 0.2), (0.2, 3.0)])
def test_the_narrowest_kernels_are_finite(sigma_px):
    for kernel in (
        gaussian_kernel(21, sigma_px=sigma_px),
        generalized_gaussian_kernel(21, sigma_px=sigma_px, beta=4.0),
        generalized_gaussian_kernel(21, sigma_px=sigma_px, beta=0.5),
        plateau_kernel(21, sigma_px=sigma_px, beta=2.0),
    ):
        assert np.isfinite(kernel).all()
        assert kernel.sum() == pytest.approx(1)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(2, 40),
    width=st.integers(2, 40),
    sides=st.lists(st.sampled_from([1, 3, 7, 21]), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
)
def test_blur_is_the_convolution_of_each_mirrored_image_with_its_own_kernel(height, width, sides, seed):
    rng = np.random.default_rng(seed)
    images = rng.random((len(sides), 2, height, width))
    kernels = [rng.uniform(-1, 1, (side, side)) / side for side in sides]
    expected = [
        [convolve(channel, kernel, mode="mirror") for channel in image]
        for image, kernel in zip(images, kernels, strict=True)
    ]
    blurred = blur(torch.from_numpy(images).float(), stacked(kernels))
    np.testing.assert_allclose(blurred.numpy(), expected, atol=2e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 1)])
def test_a_line_of_pixels_can_be_blurred(size):
    kernels = stacked([gaussian_kernel(21, sigma_px=(3.0, 3.0))])
    torch.testing.assert_close(blur(torch.full((1, 3, *size), 0.3), kernels), torch.full((1, 3, *size), 0.3))


def test_the_identity_leaves_an_image_beside_a_blurred_one_as_it_is():
    images = torch.rand(2, 3, 30, 40, generator=torch.Generator().manual_seed(0))
    kernels = stacked([identity_kernel(), sinc_kernel(1.5, 21)])
    blurred = blur(images, kernels)
    torch.testing.assert_close(blurred[0], images[0], atol=1e-5, rtol=0)
    assert (blurred[1] - images[1]).abs().mean() > 0.05


def test_blur_stays_on_the_device_of_its_images(fake_gpu):
    images = torch.empty(2, 3, 30, 40, device=fake_gpu)
    blurred = blur(images, torch.empty(2, 9, 9, device=fake_gpu))
    assert blurred.device == images.device
    assert blurred.shape == images.shape
