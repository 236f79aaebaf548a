"""Losses: the papers' formulas, references, gradients, dtypes and errors."""

import math

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from sed_sr.models.losses import GAN_LOSSES, VGG19_LAYERS, GANLoss, PerceptualLoss, l1_loss
from sed_sr.options.errors import UserError

KINDS = pytest.mark.parametrize("kind", list(GAN_LOSSES))


@pytest.fixture(scope="module")
def vgg19():
    with torch.device("meta"):
        return torchvision.models.vgg19(weights=None)


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, 32, 32, generator=generator), torch.rand(2, 3, 32, 32, generator=generator)


def test_perceptual_loss_equals_the_reference(vgg19, fill, reference):
    state = {
        f"features.{name}": torch.from_numpy(fill.fill(f"features.{name}", value.shape))
        for name, value in vgg19.features.state_dict().items()
    }
    sr, hr = (torch.from_numpy(fill.image(name, (2, 3, 64, 64))) for name in ("sr", "hr"))
    loss = PerceptualLoss(state=state)(sr, hr)
    assert loss.item() == pytest.approx(reference("perceptual_vgg19")["loss"].item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_l1_loss_equals_pytorch_and_its_gradient_has_the_layout_of_the_input(dtype):
    a, b = (torch.rand(2, 4, 8, 8).to(dtype).contiguous(memory_format=torch.channels_last) for _ in range(2))
    gradients = []
    for function in (l1_loss, lambda a, b: F.l1_loss(a.float(), b.float())):
        leaf = a.clone().requires_grad_()
        value = function(leaf, b)
        torch.testing.assert_close(value, F.l1_loss(a.float(), b.float()))
        gradients.append(torch.autograd.grad(value, leaf)[0])
    torch.testing.assert_close(*gradients)
    assert gradients[0].is_contiguous(memory_format=torch.channels_last)


def test_layer_names_match_the_convolutions_between_poolings(vgg19):
    expected, block, j = {}, 1, 0
    for i, layer in enumerate(vgg19.features):
        if isinstance(layer, nn.Conv2d):
            j += 1
            expected[f"conv{block}_{j}"] = i
        elif isinstance(layer, nn.MaxPool2d):
            block, j = block + 1, 0
    assert expected == VGG19_LAYERS


def test_layers_are_weighted_and_summed(images):
    def loss(**layer_weights):
        return PerceptualLoss(layer_weights=layer_weights)(*images).item()

    alone = loss(conv1_2=1.0), loss(conv2_1=1.0)
    assert all(alone)
    assert loss(conv1_2=0.5, conv2_1=3.0) == pytest.approx(0.5 * alone[0] + 3.0 * alone[1], rel=1e-5)


def test_features_are_taken_before_the_relu(images):
    loss = PerceptualLoss(layer_weights={"conv1_1": 1.0})
    first = loss.features[0]
    sr, hr = images
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    sr_features, hr_features = (first(((x.movedim(1, -1) - mean) / std).movedim(-1, 1)) for x in (sr, hr))
    assert (sr_features < 0).any()
    assert loss(sr, hr).item() == pytest.approx((sr_features - hr_features).abs().mean().item(), rel=1e-5)


def test_gradients_reach_sr_only(images):
    sr, hr = (x.clone().requires_grad_() for x in images)
    loss = PerceptualLoss(layer_weights={"conv2_2": 1.0})
    loss(sr, hr).backward()
    assert sr.grad.any()
    assert hr.grad is None
    assert all(p.grad is None for p in loss.parameters())


def test_layers_after_the_last_used_one_are_dropped():
    assert len(PerceptualLoss(layer_weights={"conv3_4": 1.0, "conv1_2": 1.0}).features) == 17


def test_random_weights_are_reproducible_and_leave_the_global_generator_unchanged():
    torch.manual_seed(1)
    first = PerceptualLoss(layer_weights={"conv2_2": 1.0}).state_dict()
    drawn = torch.rand(4)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(4), drawn)
    second = PerceptualLoss(layer_weights={"conv2_2": 1.0}).state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_wrong_layers_and_weights_raise():
    with pytest.raises(UserError, match=r"'conv3_5'.*conv3_4, conv4_1"):
        PerceptualLoss(layer_weights={"conv3_5": 1.0})
    with pytest.raises(UserError, match=r"no layer.*conv1_1, conv1_2"):
        PerceptualLoss(layer_weights={})
    with pytest.raises(UserError, match=r"`features\.0\.weight` of shape \(64, 3, 3, 3\).*lack it"):
        PerceptualLoss(state={})


def logits():
    generator = torch.Generator().manual_seed(0)
    return (3 * torch.randn(2, 4, 1, 5, 5, generator=generator, dtype=torch.float64)).unbind()


def minus_log(probability):
    return -probability.log().mean()


def expected_losses(kind, real, fake):
    """(G, D) in float64, literally by the papers' formulas."""
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
        minus_log(1 - real_than_fake) + minus_log(fake_than_real),
        minus_log(real_than_fake) + minus_log(1 - fake_than_real),
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
        ("relativistic", 2 * math.log(2), 2 * math.log(2)),
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
