"""One optimisation step: the algorithm of SeD in one screen.

SeD (CVPR 2024), section 3: the generator G maps LR to SR; the discriminator D sees SR or HR *and* semantic features of
the HR image, which a frozen vision model extracts:

    L_G = w_pix |G(lr) - hr|_1  +  w_per L_VGG(G(lr), hr)  +  w_gan L_adv(D(G(lr), s)),    s = extractor(hr)
    L_D = L_real(D(hr, s)) + L_fake(D(G(lr), s))

Without a discriminator this is PSNR-oriented training.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models.losses import GANLoss, PerceptualLoss

AUTOCAST_DTYPE = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def stepwise(steps_done: int, *, milestones: Sequence[int], decay: float) -> float:
    """Factor of the learning rate after so many steps: multiplied by `decay` at each milestone (rising)."""
    return decay ** bisect_right(milestones, steps_done)


class TrainStep:
    """Two networks, their objectives and optimisers, and the step that moves them.

    Args:
        generator: G, maps (B, 3, H, W) in [0, 1] to (B, 3, 4H, 4W).
        generator_optimizer, discriminator_optimizer: over the parameters of G and of D.
        schedule: factor of both learning rates after so many steps.
        discriminator: D(image, semantic) -> logits; None for PSNR-oriented training.
        extractor: frozen; (B, 3, 4H, 4W) in [0, 1] -> semantic features; None for a plain discriminator.
        perceptual: L_VGG(sr, hr), where it is one of the terms.
        adversarial: formulas of the adversarial loss, where there is a discriminator.
        weights: factor of each term of L_G that is used, among pixel, perceptual and gan.
        ema_decay: exponential moving average of G's weights, or None.
        precision: fp32, bf16 or fp16 (the latter with loss scaling) of the forward passes.
    """

    def __init__(
        self,
        *,
        generator: nn.Module,
        generator_optimizer: Optimizer,
        weights: dict[str, float],
        discriminator: nn.Module | None = None,
        discriminator_optimizer: Optimizer | None = None,
        extractor: nn.Module | None = None,
        perceptual: PerceptualLoss | None = None,
        adversarial: GANLoss | None = None,
        schedule: Callable[[int], float] = lambda steps_done: 1.0,
        ema_decay: float | None = None,
        precision: str = "fp32",
    ) -> None:
        self.step = 0  # optimisation steps done
        self.generator, self.discriminator = generator, discriminator
        self.extractor, self.perceptual, self.adversarial, self.weights = extractor, perceptual, adversarial, weights
        self.optimizers = {"generator": generator_optimizer}
        if discriminator is not None:
            self.optimizers["discriminator"] = discriminator_optimizer
        self.base_learning_rates = {name: adam.param_groups[0]["lr"] for name, adam in self.optimizers.items()}
        self.schedule = schedule
        self.ema = None
        if ema_decay is not None:
            self.ema = AveragedModel(generator, multi_avg_fn=get_ema_multi_avg_fn(ema_decay))
        device = next(generator.parameters()).device
        self.autocast = partial(
            torch.autocast, device.type, dtype=AUTOCAST_DTYPE[precision], enabled=precision != "fp32"
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.distribute(lambda network: network)

    def distribute(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        """Share the work with other processes: `wrap` makes a DistributedDataParallel of a network.

        Gradients that come through the wrapped networks are averaged over the processes. The generator's step goes
        through the bare discriminator, whose gradients nobody wants.
        """
        self._shared_generator = wrap(self.generator)
        self._shared_discriminator = wrap(self.discriminator) if self.discriminator is not None else None

    def __call__(self, lr: Tensor, hr: Tensor) -> dict[str, Tensor]:
        """Move G (and D) by one step on a batch.

        Args:
            lr: (B, 3, H, W) float in [0, 1].
            hr: (B, 3, 4H, 4W) float in [0, 1].

        Returns:
            The unweighted terms of both objectives and D's mean logits, detached scalars on the device.
        """
        with self.autocast():
            semantic = self.extractor(hr) if self.extractor is not None else None
        sr, terms = self._generator_step(lr, hr, semantic)
        if self.discriminator is not None:
            terms |= self._discriminator_step(sr.detach(), hr, semantic)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update_parameters(self.generator)
        self.step += 1
        return terms

    def _generator_step(self, lr: Tensor, hr: Tensor, semantic: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        terms = {}
        with self.autocast():
            sr = self._shared_generator(lr).float()
            if "pixel" in self.weights:
                terms["pixel"] = F.l1_loss(sr, hr)
            if "perceptual" in self.weights:
                terms["perceptual"] = self.perceptual(sr, hr)
            if "gan" in self.weights:
                self.discriminator.requires_grad_(False)
                real = self.discriminator(hr, semantic) if self.adversarial.needs_real else None
                terms["gan"] = self.adversarial.generator(self.discriminator(sr, semantic), real)
        self._descend("generator", sum(self.weights[name] * term for name, term in terms.items()))
        return sr, {name: term.detach() for name, term in terms.items()}

    def _discriminator_step(self, sr: Tensor, hr: Tensor, semantic: Tensor | None) -> dict[str, Tensor]:
        self.discriminator.requires_grad_(True)
        with self.autocast():
            # Real and fake in one batch: one pass, one synchronisation of gradients.
            twice = None if semantic is None else torch.cat((semantic, semantic))
            real, fake = self._shared_discriminator(torch.cat((hr, sr)), twice).chunk(2)
            loss = self.adversarial.discriminator(real, fake)
        self._descend("discriminator", loss)
        return {"d_loss": loss.detach(), "d_real": real.detach().mean(), "d_fake": fake.detach().mean()}

    def _descend(self, name: str, loss: Tensor) -> None:
        optimizer = self.optimizers[name]
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate(name)
        optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(optimizer)

    def learning_rate(self, name: str = "generator") -> float:
        """Of the generator or the discriminator, at the step that comes."""
        return self.base_learning_rates[name] * self.schedule(self.step)

    @property
    def deployed_generator(self) -> nn.Module:
        """The generator that is validated and that others will use: the averaged one where there is one."""
        return self.ema.module if self.ema is not None else self.generator

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, but for the batch and the options."""
        moments = {name: optimizer.state_dict()["state"] for name, optimizer in self.optimizers.items()}
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        return {"step": self.step, "moments": moments, **parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict()` of a TrainStep of the same networks.

        Learning rates and betas are the options', not the state's: whoever changes them means it. An average or a
        loss scale that the state does not have begins anew.
        """
        self.step = state["step"]
        for name, optimizer in self.optimizers.items():
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state["moments"][name], "param_groups": groups})
        for name, part in self._parts().items():
            if state.get(name) or part not in (self.ema, self.scaler):
                part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        parts = {"generator": self.generator, "discriminator": self.discriminator, "ema": self.ema}
        return {name: part for name, part in {**parts, "scaler": self.scaler}.items() if part is not None}
