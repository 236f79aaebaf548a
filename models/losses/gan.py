"""The adversarial losses of G and D. To add a kind, add a line to `GAN_LOSSES` and its name to `GANLossOptions`."""

import torch.nn.functional as F
from torch import Tensor

from sed_sr.options.errors import UserError

# Each GAN loss consists of G's loss of logits (fake, real), D's loss of (real, fake), and the decision boundary: the
# logit at which D is undecided, None for relativistic losses. Logits have any shape; losses are means over all of them.
# D's loss is the sum of its two terms, without the factor 1/2, except for `relativistic`.
# -log(sigmoid(x)) = softplus(-x) keeps logarithms finite.


def _vanilla_generator(fake: Tensor, _: Tensor | None) -> Tensor:
    """Goodfellow et al. 2014, section 3, the non-saturating form: -E[log sigmoid(fake)]."""
    return F.softplus(-fake).mean()


def _vanilla_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Goodfellow et al. 2014, equation 1: -E[log sigmoid(real)] - E[log(1 - sigmoid(fake))]."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def _lsgan_generator(fake: Tensor, _: Tensor | None) -> Tensor:
    """Mao et al. 2017, equation 9, without 1/2."""
    return (fake - 1).square().mean()


def _lsgan_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Mao et al. 2017, equation 9, without 1/2."""
    return (real - 1).square().mean() + fake.square().mean()


def _hinge_generator(fake: Tensor, _: Tensor | None) -> Tensor:
    """Lim & Ye 2017; Miyato et al. 2018, equation 17."""
    return -fake.mean()


def _hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Lim & Ye 2017; Miyato et al. 2018, equation 16."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def _relativistic_generator(fake: Tensor, real: Tensor | None) -> Tensor:
    """Relativistic average: Jolicoeur-Martineau 2018; ESRGAN, equation 2. D's loss with real and fake exchanged."""
    assert real is not None, "the generator's loss needs the logits of real images"
    return _relativistic_discriminator(real=fake, fake=real)


def _relativistic_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Relativistic average: Jolicoeur-Martineau 2018; ESRGAN, equation 1, with the factor 1/2 of its published code."""
    return 0.5 * (F.softplus(fake.mean() - real).mean() + F.softplus(fake - real.mean()).mean())


GAN_LOSSES = {
    "vanilla": (_vanilla_generator, _vanilla_discriminator, 0.0),
    "lsgan": (_lsgan_generator, _lsgan_discriminator, 0.5),
    "hinge": (_hinge_generator, _hinge_discriminator, 0.0),
    "relativistic": (_relativistic_generator, _relativistic_discriminator, None),
}


class GANLoss:
    """The adversarial losses of G and D, computed in float32 also under autocast.

    Args:
        kind: vanilla, lsgan, hinge or relativistic.

    Attributes:
        needs_real: whether the generator's loss depends on the logits of real images.
        boundary: the logit at which D is undecided; None if D compares each logit with the mean of the other kind.

    Raises:
        UserError: the kind is unknown.
    """

    def __init__(self, kind: str):
        if kind not in GAN_LOSSES:
            raise UserError(f"the GAN loss {kind!r} was given, but only {', '.join(GAN_LOSSES)} are known")
        self._generator, self._discriminator, self.boundary = GAN_LOSSES[kind]
        self.needs_real = self.boundary is None  # G's loss compares logits of fake with those of real

    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        """Logits of fake, and of real if `needs_real` -> G's loss, a scalar."""
        return self._generator(fake.float(), None if real is None else real.float())

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Logits of real and of fake -> D's loss, a scalar."""
        return self._discriminator(real.float(), fake.float())
