"""Measures of the state of GAN training: gradient shares, spectral norms, colour drift, discriminator accuracy.

Nothing here waits for the device, draws random numbers, or changes a network, its buffers or its `.grad`. So measuring
does not change training.
"""

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.nn.utils.parametrize import is_parametrized

# The Schatten norm of order p, (sum of sigma^p)^(1/p), of a matrix with n rows is the largest singular value times at
# most n^(1/p). With 9 squarings p is 2 * 2^9 = 1024, and that factor at most 1.007 for n = 1024.
SQUARINGS = 9


def gradient_shares(terms: Mapping[str, Tensor], parameters: Iterable[Tensor]) -> dict[str, Tensor]:
    """How much of a network's gradient comes from each term of its objective, on this process alone.

    Args:
        terms: weighted scalars with their graph, which is kept for the backward pass that follows. A common factor,
            such as a loss scale, does not change the result; under fp16 it prevents underflow of small gradients.
        parameters: of the network; frozen ones are ignored.

    Returns:
        For each term, the L2 norm of its gradient over all parameters, divided by the sum of these norms. The scalars
        add up to 1; they are 0 if all gradients are zero, and NaN if any gradient is not finite.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    gradients = (
        torch.autograd.grad(term, trained, retain_graph=True, allow_unused=True, materialize_grads=True)
        for term in terms.values()
    )
    norms = torch.stack([get_total_norm([part.float() for part in gradient]) for gradient in gradients])
    total = norms.sum()
    # Otherwise an infinite gradient would make the other shares 0.
    total = total.where(total.isfinite(), torch.nan)
    return dict(zip(terms, norms / total.where(total != 0, 1), strict=True))


@torch.no_grad()
def spectral_norms(network: nn.Module) -> dict[str, Tensor]:
    """The largest singular value of the weight of each convolution and linear layer, overestimated by at most 1 %.

    The weight is the effective one, after `spectral_norm` if the layer has it, as a matrix of shape (out, in * k * k)
    (Miyato et al., ICLR 2018, section 2.1). Keys are module names.
    """
    return {
        name: _largest_singular_value(_effective_weight(layer).flatten(1))
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    }


def _effective_weight(layer: nn.Conv2d | nn.Linear) -> Tensor:
    if not is_parametrized(layer, "weight"):
        return layer.weight
    # By a copy in evaluation mode: reading the weight in training mode would advance the power iteration.
    return copy.deepcopy(layer.get_submodule("parametrizations.weight")).eval()()


def _largest_singular_value(matrix: Tensor) -> Tensor:
    """The Schatten norm of a high order. The product of a matrix with its transpose squares all singular values.

    Unlike this bound, power iteration needs a start vector, and hundreds of iterations if the largest singular values
    are close together, as those of a random matrix are.
    """
    rows, columns = matrix.shape
    power = matrix.float() if rows < columns else matrix.float().T  # so that the products are small
    log_norm = 0.0
    for i in range(SQUARINGS):
        norm = torch.linalg.matrix_norm(power)
        log_norm += norm.log() / 2**i
        power = power / norm.clamp_min(torch.finfo(norm.dtype).tiny)  # weights may be all zero
        power = power @ power.T
    return (log_norm + torch.linalg.matrix_norm(power).log() / 2**SQUARINGS).exp()


@torch.no_grad()
def colour_drift(sr: Tensor, hr: Tensor) -> dict[str, Tensor]:
    """Mean of SR - HR over batch and pixels for each colour channel, in units of 1/255.

    sr, hr: (B, 3, H, W) float in [0, 1].
    """
    red, green, blue = 255 * (sr.float() - hr.float()).mean(dim=(0, 2, 3))
    return {"drift_red": red, "drift_green": green, "drift_blue": blue}


@torch.no_grad()
def accuracy(real: Tensor, fake: Tensor, boundary: float | None) -> dict[str, Tensor]:
    """The shares of real logits above the decision boundary and of fake logits below it.

    A logit exactly at the boundary counts as half, so that a discriminator that is undecided everywhere has 0.5.

    Args:
        real, fake: logits of any shape.
        boundary: `GANLoss.boundary`; None compares real with the mean of fake, and fake with the mean of real.
    """
    real, fake = real.double(), fake.double()  # so that the mean of equal logits is exactly that logit
    real_boundary, fake_boundary = (fake.mean(), real.mean()) if boundary is None else (boundary, boundary)
    return {
        "d_real_accuracy": _share_of_positive(real - real_boundary),
        "d_fake_accuracy": _share_of_positive(fake_boundary - fake),
    }


def _share_of_positive(margins: Tensor) -> Tensor:
    return ((1 + margins.sign()) / 2).mean().float()
