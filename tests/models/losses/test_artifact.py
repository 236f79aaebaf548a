"""The artifact loss of LDL, compared with loops over pixels and windows, and with finite differences."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sed_sr.models.losses.artifact import artifact_loss, artifact_map


def images(height=12, width=15, batch=2, dtype=torch.float64):
    """HR, SR, and SR of the averaged generator, which is better in about half of the pixels."""
    generator = torch.Generator().manual_seed(0)
    hr, *noises = torch.rand(3, batch, 3, height, width, generator=generator, dtype=dtype).unbind()
    sr, sr_ema = (hr + 0.2 * (noise - 0.5) for noise in noises)
    return sr, hr, sr_ema


def map_by_loops(sr, hr, sr_ema):
    """Section 3 of the paper for one image (3, H, W), pixel by pixel."""
    sr, hr, sr_ema = (image.detach().numpy() for image in (sr, hr, sr_ema))
    residual, residual_ema = np.abs(hr - sr).sum(axis=0), np.abs(hr - sr_ema).sum(axis=0)
    whole = np.var(residual, ddof=1) ** (1 / 5)
    padded = np.pad(residual, 3, mode="reflect")
    weight = np.zeros_like(residual)
    for row, column in np.ndindex(residual.shape):
        if residual[row, column] >= residual_ema[row, column]:
            window = padded[row : row + 7, column : column + 7]
            weight[row, column] = whole * ((window - window.mean()) ** 2).sum() / 48
    return weight


def test_map_and_loss_equal_the_formulas_pixel_by_pixel():
    sr, hr, sr_ema = images()
    weights = artifact_map(sr, hr, sr_ema)
    expected = np.stack([map_by_loops(*each) for each in zip(sr, hr, sr_ema, strict=True)])[:, None]
    assert 0.3 < (expected == 0).mean() < 0.7
    np.testing.assert_allclose(weights, expected, rtol=1e-12)
    loss = np.abs(expected * sr.numpy() - expected * hr.numpy()).mean()
    assert artifact_loss(sr.float(), hr.float(), sr_ema.float()).item() == pytest.approx(loss, rel=1e-5)


def test_images_of_a_batch_do_not_affect_each_other():
    sr, hr, sr_ema = images(batch=3)
    together = artifact_map(sr, hr, sr_ema)
    alone = [artifact_map(*(image[None] for image in each)) for each in zip(sr, hr, sr_ema, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_gradient_is_that_of_the_formula_through_the_map_too():
    """By finite differences, with residuals that are far from 0 and from those of the averaged generator."""
    generator = torch.Generator().manual_seed(1)
    hr = torch.zeros(1, 3, 5, 4, dtype=torch.float64)
    sr = (0.5 + torch.rand(hr.shape, generator=generator, dtype=torch.float64)).requires_grad_()
    sr_ema = torch.where(torch.rand(1, 1, 5, 4, generator=generator) < 0.5, 0.1, 5.0).double().expand_as(hr)
    assert torch.autograd.gradcheck(lambda sr: (artifact_map(sr, hr, sr_ema) * (sr - hr)).abs().sum(), sr)
    (whole,) = torch.autograd.grad(artifact_map(sr, hr, sr_ema).sum(), sr)
    assert (whole != 0).all()  # the variance of all of R reaches every pixel


def test_gradient_of_the_loss_is_that_of_the_formulas_on_patches():
    """Against PyTorch's own padding and unfolding, in float64."""
    sr, hr, sr_ema = images()
    sr.requires_grad_()
    residual, residual_ema = ((hr - image).abs().sum(dim=1, keepdim=True) for image in (sr, sr_ema))
    windows = F.unfold(F.pad(residual, (3, 3, 3, 3), mode="reflect"), 7).var(dim=1).view_as(residual)
    weight = residual.flatten(1).var(dim=1).view(-1, 1, 1, 1) ** (1 / 5) * windows
    weight = torch.where(residual < residual_ema, 0.0, weight)
    (expected,) = torch.autograd.grad((weight * sr - weight * hr).abs().mean(), sr)
    (gradient,) = torch.autograd.grad(artifact_loss(sr, hr, sr_ema), sr)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-9)


def test_loss_is_0_with_gradient_0_where_sr_is_hr_and_where_the_averaged_generator_is_worse():
    sr, hr, _ = images(dtype=torch.float32)
    perfect, flat = hr.clone().requires_grad_(), (hr + 0.1).requires_grad_()
    for image, sr_ema in ((perfect, sr), (flat, sr), (sr.requires_grad_(), hr + 9)):
        loss = artifact_loss(image, hr, sr_ema)
        (gradient,) = torch.autograd.grad(loss, image)
        assert loss.item() == pytest.approx(0, abs=1e-12)
        assert gradient.abs().max() == pytest.approx(0, abs=1e-12)


def test_averaged_generator_gets_no_gradient():
    sr, hr, sr_ema = images()
    loss = artifact_loss(sr.requires_grad_(), hr, sr_ema.requires_grad_())
    assert torch.autograd.grad(loss, sr_ema, allow_unused=True) == (None,)
