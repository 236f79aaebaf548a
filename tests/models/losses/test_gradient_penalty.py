"""R1 of functions with known gradients, and of the discriminators against finite differences."""

import pytest
import torch

from sed_sr.models.discriminators import PatchDiscriminator, UNetDiscriminator
from sed_sr.models.losses.gradient_penalty import r1_penalty, twice_differentiable

CHANNELS = 8  # of the semantic features
STEP = 1e-8  # so small that no activation crosses the kink of a leaky ReLU, where the penalty jumps


def test_linear_and_quadratic_discriminators_have_the_known_penalty_and_gradient():
    weight = torch.rand(3, 4, 4, requires_grad=True)
    image = torch.rand(5, 3, 4, 4, requires_grad=True)
    penalty = r1_penalty((weight * image).sum(dim=1), image)  # 16 logits for each image; the gradient is `weight`
    torch.testing.assert_close(penalty, weight.square().sum() / 2)
    torch.testing.assert_close(torch.autograd.grad(penalty, weight)[0], weight)
    penalty = r1_penalty((weight * image.square()).sum(dim=1), image)  # the gradient is 2 * weight * image
    torch.testing.assert_close(penalty, 2 * (weight * image).square().sum() / 5)


@pytest.mark.parametrize("cls", [PatchDiscriminator, UNetDiscriminator])
def test_gradient_of_the_parameters_equals_finite_differences(cls, fill_parameters):
    """Through spectral norm, attention and all norms, along random directions."""
    torch.manual_seed(0)
    discriminator = fill_parameters(cls(semantic_channels=CHANNELS, features=8)).double()
    image, semantic = torch.rand(2, 3, 32, 32).double(), torch.rand(1, CHANNELS, 2, 2).double()
    for _ in range(30):  # power iterations, for weights that are not those of the initialisation
        discriminator(image, semantic)
    discriminator.eval()
    parameters = list(discriminator.parameters())

    def penalty():
        leaf = image.clone().requires_grad_()
        with twice_differentiable():
            logits = discriminator(leaf, semantic)
        return r1_penalty(logits, leaf)

    gradient = torch.autograd.grad(penalty(), parameters, materialize_grads=True)
    for part in ("", "fusion1.cross_attention"):
        named = zip(discriminator.named_parameters(), gradient, strict=True)
        chosen = [(p, g, torch.randn_like(p)) for (name, p), g in named if name.startswith(part)]
        slope = sum((g * direction).sum() for _, g, direction in chosen)
        assert slope != 0
        values = []
        for step in (STEP, -2 * STEP):
            with torch.no_grad():
                for parameter, _, direction in chosen:
                    parameter.add_(direction, alpha=step)
            values.append(penalty().item())
        with torch.no_grad():
            for parameter, _, direction in chosen:
                parameter.add_(direction, alpha=STEP)
        assert (values[0] - values[1]) / (2 * STEP) == pytest.approx(slope.item(), rel=1e-4)


def test_compiled_discriminators_have_second_derivatives():
    """Compiled as a training step does, by a compiler that traces forward and backward but generates no code."""
    torch.manual_seed(0)
    discriminator = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Softplus(), torch.nn.Conv2d(4, 1, 3))
    image, gradients = torch.rand(1, 3, 8, 8), []
    for _ in range(2):
        leaf = image.clone().requires_grad_()
        with twice_differentiable():
            logits = discriminator(leaf)
        gradients.append(torch.autograd.grad(r1_penalty(logits, leaf), discriminator[0].weight)[0])
        discriminator.compile(backend="aot_eager")
        discriminator(image).sum().backward()
    assert gradients[0].any()
    torch.testing.assert_close(*gradients)
