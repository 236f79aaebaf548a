"""GAN losses: the papers' formulas, gradients, dtypes and errors."""

import math

import pytest
import torch

from sed_sr.models.losses.gan import GAN_LOSSES, GANLoss
from sed_sr.options.errors import UserError

KINDS = pytest.mark.parametrize("kind", list(GAN_LOSSES))


def logits():
    generator = torch.Generator().manual_seed(0)
    return (3 * torch.randn(2, 4, 1, 5, 5, generator=generator, dtype=torch.float64)).unbind()


def minus_log(probability):
    return -probability.log().mean()


def expected_losses(kind, real, fake):
    """(G, D) in float64, literally by the papers' formulas; the relativistic ones with 1/2, as in ESRGAN's code."""
    sigmoid = torch.sigmoid
    if kind == "vanilla":
        return minus_log(sigmoid(fake)), minus_log(sigmoid(real)) + minus_log(1 - sigmoid(fake))
    if kind == "lsgan":
        return ((fake - 1) ** 2).mean(), ((real - 1) ** 2).mean() + (fake**2).mean()
    if kind == "hinge":
        zero = torch.zeros_like(real)
        return -fake.mean(), -torch.minimum(zero, real - 1).mean() - torch.minimum(zero, -fake - 1).mean()
    real_than_fake, fake_than_real = sigmoid(real - fake.mean()), sigmoid(fake - real.mean())
    return (
        (minus_log(1 - real_than_fake) + minus_log(fake_than_real)) / 2,
        (minus_log(real_than_fake) + minus_log(1 - fake_than_real)) / 2,
    )


@KINDS
def test_gan_losses_equal_the_papers_formulas(kind):
    real, fake = logits()
    generator, discriminator = expected_losses(kind, real, fake)
    loss = GANLoss(kind)
    assert loss.generator(fake, real).item() == pytest.approx(generator.item(), rel=1e-5)
    assert loss.discriminator(real, fake).item() == pytest.approx(discriminator.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "generator", "discriminator"),
    [
        ("vanilla", math.log(2), 2 * math.log(2)),
        ("lsgan", 1, 1),
        ("hinge", 0, 2),
        ("relativistic", math.log(2), math.log(2)),
    ],
)
def test_gan_losses_of_an_undecided_discriminator(kind, generator, discriminator):
    undecided = torch.zeros(2, 1, 3, 3)
    loss = GANLoss(kind)
    assert loss.generator(undecided, undecided).item() == pytest.approx(generator)
    assert loss.discriminator(undecided, undecided).item() == pytest.approx(discriminator)


@KINDS
def test_g_increases_the_logits_of_fake_and_d_separates_real_and_fake(kind):
    # Between lsgan's targets, 0 and 1, and within the hinge margins.
    real, fake = torch.full((4,), 0.6).requires_grad_(), torch.full((4,), 0.4).requires_grad_()
    loss = GANLoss(kind)
    assert (torch.autograd.grad(loss.generator(fake, real), fake)[0] < 0).all()
    real_gradient, fake_gradient = torch.autograd.grad(loss.discriminator(real, fake), (real, fake))
    assert (real_gradient < 0).all()
    assert (fake_gradient > 0).all()


@KINDS
def test_loss_is_symmetric_about_the_boundary(kind):
    """D's loss is the same after reflecting all logits at the boundary and exchanging real and fake."""
    real, fake = logits()
    loss = GANLoss(kind)
    boundary = 0.7 if loss.boundary is None else loss.boundary  # any value for relativistic losses
    mirrored = loss.discriminator(real=2 * boundary - fake, fake=2 * boundary - real)
    assert mirrored.item() == pytest.approx(loss.discriminator(real, fake).item(), rel=1e-5)


@KINDS
def test_generator_loss_uses_real_only_if_it_needs_real(kind):
    real, fake = torch.zeros(4, requires_grad=True), torch.ones(4, requires_grad=True)
    loss = GANLoss(kind)
    gradient = torch.autograd.grad(loss.generator(fake, real), real, allow_unused=True)[0]
    assert loss.needs_real == (gradient is not None)
    if loss.needs_real:
        with pytest.raises(AssertionError, match="logits of real"):
            loss.generator(fake)
    else:
        assert torch.equal(loss.generator(fake), loss.generator(fake, real))


@KINDS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gan_losses_are_computed_in_float32(kind, dtype):
    real, fake = (x.to(dtype) for x in logits())
    generator, discriminator = expected_losses(kind, real.double(), fake.double())
    loss = GANLoss(kind)
    with torch.autocast("cpu", dtype):
        losses = loss.generator(fake, real), loss.discriminator(real, fake)
    assert all(x.dtype == torch.float32 for x in losses)
    assert losses[0].item() == pytest.approx(generator.item(), rel=1e-5)
    assert losses[1].item() == pytest.approx(discriminator.item(), rel=1e-5)


@KINDS
@pytest.mark.parametrize("logit", [-200.0, 200.0])
def test_large_logits_give_finite_losses_and_gradients(kind, logit):
    real, fake = torch.full((4,), -logit).requires_grad_(), torch.full((4,), logit).requires_grad_()
    loss = GANLoss(kind)
    total = loss.generator(fake, real) + loss.discriminator(real, fake)
    assert total.isfinite()
    assert all(g.isfinite().all() for g in torch.autograd.grad(total, (real, fake)))


def test_unknown_kind_raises():
    with pytest.raises(UserError, match=r"'wgan'.*vanilla, lsgan, hinge, relativistic"):
        GANLoss("wgan")
