"""R1, the gradient penalty of the discriminator on real images: Mescheder et al., ICML 2018."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


def r1_penalty(logits: Tensor, image: Tensor) -> Tensor:
    """1/2 E ||grad D(image)||^2: equation 9 without its factor gamma, a scalar that can be differentiated.

    D(image) is the sum of an image's logits, so that the penalty grows with their number.

    Args:
        logits: of D for `image`, computed within `twice_differentiable()`.
        image: (B, 3, H, W), which requires a gradient.
    """
    (gradient,) = torch.autograd.grad(logits.float().sum(), image, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean() / 2


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Context for a forward pass with second derivatives, which fused attention and compiled code do not have."""
    with sdpa_kernel(SDPBackend.MATH), torch.compiler.set_stance("force_eager"):
        yield
