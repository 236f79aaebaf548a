"""A training step as the authors' code takes it, to compare with: on this project's modules, in a recipe's sizes.

Float32 with PyTorch's defaults (cuDNN's convolutions may use TF32, matrix products not), contiguous NCHW, no autocast;
D sees real and fake in two passes; Adam as PyTorch has it; five losses are read from the device in each step. Semantics
are computed once a step.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from sed_sr.data.batches import Batch
from sed_sr.models.build import build_discriminator, build_extractor, build_generator, build_image_losses
from sed_sr.models.precision import convolutions
from sed_sr.options.schema import Options


class ReleasedStep:
    """The step of a recipe with a semantic discriminator and the vanilla GAN loss. It returns its losses."""

    def __init__(self, options: Options, device: torch.device) -> None:
        assert options.losses.gan.type == "vanilla"
        extractor = build_extractor(options, None)
        self.generator = build_generator(options).to(device).train()
        self.discriminator = build_discriminator(options, extractor).to(device).train()
        self.extractor, self.perceptual = extractor, build_image_losses(options, {})["perceptual"]
        for network in (self.extractor, self.perceptual):
            network.to(device)
        self.weights, chosen = options.losses, options.optimizer
        self.generator_optimizer = torch.optim.Adam(
            self.generator.parameters(), lr=chosen.learning_rate, betas=chosen.betas
        )
        self.discriminator_optimizer = torch.optim.Adam(
            self.discriminator.parameters(), lr=chosen.discriminator_learning_rate, betas=chosen.betas
        )

    def __call__(self, batch: Batch) -> dict[str, float]:
        with convolutions(tf32=True, autotune=False):
            semantic = self.extractor(batch.hr)
            self.discriminator.requires_grad_(False)
            self.generator_optimizer.zero_grad()
            sr = self.generator(batch.lr)
            pixel, perceptual = F.l1_loss(sr, batch.hr), self.perceptual(sr, batch.hr)
            gan = _cross_entropy(self.discriminator(sr, semantic), 1.0)
            weights = self.weights
            (
                weights.pixel.weight * pixel + weights.perceptual.weight * perceptual + weights.gan.weight * gan
            ).backward()
            self.generator_optimizer.step()

            self.discriminator.requires_grad_(True)
            self.discriminator_optimizer.zero_grad()
            real = _cross_entropy(self.discriminator(batch.hr, semantic), 1.0)
            real.backward()
            fake = _cross_entropy(self.discriminator(sr.detach(), semantic), 0.0)
            fake.backward()
            self.discriminator_optimizer.step()
        terms = {"pixel": pixel, "perceptual": perceptual, "gan": gan, "d_real_loss": real, "d_fake_loss": fake}
        return {name: term.item() for name, term in terms.items()}


def _cross_entropy(logits: Tensor, label: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))
