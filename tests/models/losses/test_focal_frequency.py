"""The focal frequency loss against numpy's transform, image by image."""

import numpy as np
import pytest
import torch

from sed_sr.models.losses.focal_frequency import focal_frequency_loss


def images():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, 12, 10, generator=generator), torch.rand(2, 3, 12, 10, generator=generator)


def by_numpy(sr, hr, alpha):
    """Equations 8 and 9 of Jiang et al., with loops; also the weights."""
    losses, weights = [], np.empty(sr.shape)
    for n in range(sr.shape[0]):
        for c in range(sr.shape[1]):
            spectra = [np.fft.fft2(image[n, c].double().numpy(), norm="ortho") for image in (sr, hr)]
            distance = np.abs(spectra[0] - spectra[1])
            weights[n, c] = distance**alpha / (distance**alpha).max()
            losses.append((weights[n, c] * distance**2).mean())
    return np.mean(losses), weights


@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.5])
def test_equals_numpy(alpha):
    sr, hr = images()
    expected, _ = by_numpy(sr, hr, alpha)
    assert focal_frequency_loss(sr, hr, alpha=alpha).item() == pytest.approx(expected, rel=1e-5)


def test_weights_are_constants_for_the_gradient():
    """By central differences of the loss with the weights of the images as they are."""
    sr, hr = images()
    _, weights = by_numpy(sr, hr, 1.0)
    (gradient,) = torch.autograd.grad(focal_frequency_loss(sr.requires_grad_(), hr), sr)
    direction = np.random.default_rng(0).standard_normal(sr.shape)

    def loss(step):
        difference = sr.detach().double().numpy() + step * direction - hr.double().numpy()
        return (weights * np.abs(np.fft.fft2(difference, norm="ortho")) ** 2).mean()

    slope = (loss(1e-4) - loss(-1e-4)) / 2e-4
    assert (gradient.double().numpy() * direction).sum() == pytest.approx(slope, rel=1e-4)


def test_equal_images_give_zero_and_finite_gradients():
    sr, _ = images()
    loss = focal_frequency_loss(sr.requires_grad_(), sr.detach())
    (gradient,) = torch.autograd.grad(loss, sr)
    assert loss == 0
    assert not gradient.any()
