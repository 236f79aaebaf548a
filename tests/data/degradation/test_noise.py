"""Noise has the moments of its definition; each bound is a few standard errors of the estimate."""

import math

import pytest
import torch

from sed_sr.data.degradation.noise import count_distinct, gaussian_noise, poisson_noise

SIDE_PX = 200


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def halves():
    """(3, 3, H, W): the colours of each sample are .25, .5 and .75 in the left half, and 4 levels brighter right.

    Not so in the last sample, which is flat. So the samples are far from 0 and 1, and hold 6, 6 and 3 different values.
    """
    image = torch.tensor([64.0, 128.0, 191.0])[:, None, None].repeat(1, SIDE_PX, SIDE_PX)
    images = image.repeat(3, 1, 1, 1)
    images[:2, ..., SIDE_PX // 2 :] += 4
    return images / 255


def correlation(noise):
    """(3, H, W) -> the correlation of the first two channels."""
    return torch.corrcoef(noise[:2].flatten(1))[0, 1].item()


def none_grey(images):
    return torch.zeros(len(images), dtype=torch.bool)


def test_gaussian_noise_has_its_mean_and_every_sample_its_sigma(halves, generator):
    sigma = torch.tensor([1.0, 10.0, 20.0])
    noise = gaussian_noise(halves, sigma=sigma, grey=none_grey(halves), generator=generator) - halves
    standard_error = sigma / 255 / math.sqrt(3 * SIDE_PX**2)
    assert (noise.mean(dim=(1, 2, 3)).abs() < 4 * standard_error).all()
    torch.testing.assert_close(noise.flatten(1).std(1), sigma / 255, rtol=0.01, atol=0)


def test_gaussian_noise_is_normal(halves, generator):
    noise = gaussian_noise(halves, sigma=torch.full((3,), 10), grey=none_grey(halves), generator=generator) - halves
    for deviations, share in ((1, 0.6827), (2, 0.9545), (3, 0.9973)):
        assert (noise.abs() < deviations * 10 / 255).float().mean().item() == pytest.approx(share, abs=0.003)


def test_poisson_noise_has_the_variance_of_the_counted_photons(halves, generator):
    scale = torch.tensor([0.05, 0.1, 0.2])
    noise = poisson_noise(halves, scale=scale, grey=none_grey(halves), generator=generator) - halves
    photons = torch.tensor([[8], [8], [4]])  # different values, rounded up to a power of two
    flat, levels = noise[..., : SIDE_PX // 2].flatten(2), halves[..., 0, 0]  # the half where channels are constant
    deviation = (levels / photons).sqrt() * scale[:, None]
    torch.testing.assert_close(flat.std(2), deviation, rtol=0.03, atol=0)
    standard_error = deviation / math.sqrt(flat.shape[2])
    assert (flat.mean(2).abs() < 4 * standard_error).all()


def test_grey_poisson_noise_is_that_of_the_luminance(halves, generator):
    grey = torch.ones(3, dtype=torch.bool)
    noise = poisson_noise(halves, scale=torch.full((3,), 0.1), grey=grey, generator=generator) - halves
    luminance = 0.299 * 64 / 255 + 0.587 * 128 / 255 + 0.114 * 191 / 255
    photons = torch.tensor([2, 2, 1])  # the luminance has a value in each half
    expected = (luminance / photons).sqrt() * 0.1
    torch.testing.assert_close(noise[..., : SIDE_PX // 2].flatten(1).std(1), expected, rtol=0.03, atol=0)


@pytest.mark.parametrize(("add", "strength"), [(gaussian_noise, {"sigma": 10.0}), (poisson_noise, {"scale": 0.1})])
def test_channels_share_the_noise_of_grey_samples_alone(halves, generator, add, strength):
    strength = {name: torch.full((3,), value) for name, value in strength.items()}
    grey = torch.tensor([True, False, True])
    noise = add(halves, **strength, grey=grey, generator=generator) - halves
    assert correlation(noise[0]) == pytest.approx(1, abs=1e-4)
    assert correlation(noise[1]) == pytest.approx(0, abs=0.02)
    assert correlation(noise[2]) == pytest.approx(1, abs=1e-4)
    between = torch.corrcoef(noise[:, 0].flatten(1))
    torch.testing.assert_close(between, torch.eye(3), atol=0.02, rtol=0)


@pytest.mark.parametrize(("add", "strength"), [(gaussian_noise, "sigma"), (poisson_noise, "scale")])
def test_noise_is_the_generators_and_repeats_with_its_state(halves, add, strength):
    given = {strength: torch.full((3,), 2.0), "grey": torch.tensor([True, False, False])}
    first, second = (add(halves, **given, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, add(halves, **given, generator=torch.Generator().manual_seed(2)))


@pytest.mark.parametrize(("add", "strength"), [(gaussian_noise, {"sigma": 200.0}), (poisson_noise, {"scale": 30.0})])
def test_images_stay_in_range_however_strong_the_noise(halves, generator, add, strength):
    strength = {name: torch.full((3,), value) for name, value in strength.items()}
    noisy = add(halves, **strength, grey=none_grey(halves), generator=generator)
    assert noisy.min() == 0
    assert noisy.max() == 1


def test_values_are_counted_in_each_sample_by_itself():
    levels = torch.randint(256, (4, 3, 9, 7), generator=torch.Generator().manual_seed(0)).float()
    levels[1] = 255
    levels[2] = levels[2] % 5
    assert count_distinct(levels).tolist() == [len(sample.unique()) for sample in levels]
