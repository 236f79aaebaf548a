"""One optimisation step: the algorithm of SeD in one screen.

SeD (CVPR 2024), section 3: the generator G maps LR to SR; the discriminator D sees SR or HR *and* semantic features of
the HR image, which a frozen vision model extracts:

    L_G = w_pix |G(lr) - hr|_1  +  w_per L_VGG(G(lr), hr)  +  w_gan L_adv(D(G(lr), s)),    s = extractor(hr)
    L_D = L_real(D(hr, s)) + L_fake(D(G(lr), s))

Without a discriminator this is PSNR-oriented training.
"""

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models.diagnostics import accuracy, colour_drift, gradient_shares
from models.losses import GANLoss, PerceptualLoss

AUTOCAST_DTYPE = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Batch(NamedTuple):
    """Training pairs, float in [0, 1]."""

    lr: Tensor  # (B, 3, H, W)
    hr: Tensor  # (B, 3, 4H, 4W)
    sharp: Tensor | None = None  # the same, sharpened, where some losses compare with it


@dataclass(frozen=True)
class Outcome:
    """What came of one step."""

    terms: dict[str, Tensor]  # scalars on the device, means over this process's batches
    broken: tuple[str, ...]  # terms that were not finite on some process; where there are any, nothing was moved


class TrainStep:
    """Two networks, their objectives and optimisers, and the step that moves them.

    Args:
        generator: G, maps (B, 3, H, W) in [0, 1] to (B, 3, 4H, 4W).
        generator_optimizer, discriminator_optimizer: over the parameters of G and of D.
        schedule: factor of both learning rates after so many steps.
        clip_grad_norm: the longest that the gradient of a network may be, over all its parameters.
        discriminator: D(image, semantic) -> logits; None for PSNR-oriented training.
        extractor: frozen; (B, 3, 4H, 4W) in [0, 1] -> semantic features; None for a plain discriminator.
        perceptual: L_VGG(sr, hr), where it is one of the terms.
        adversarial: formulas of the adversarial loss, where there is a discriminator.
        weights: factor of each term of L_G that is used, among pixel, perceptual and gan.
        sharpened: the terms among them that compare with sharpened HR (Real-ESRGAN); semantics are HR's all the same.
        ema_decay: exponential moving average of G's weights, or None.
        precision: fp32, tf32, bf16 or fp16 (the latter with loss scaling) of the forward passes.
    """

    def __init__(
        self,
        *,
        generator: nn.Module,
        generator_optimizer: Optimizer,
        weights: dict[str, float],
        sharpened: Collection[str] = (),
        discriminator: nn.Module | None = None,
        discriminator_optimizer: Optimizer | None = None,
        extractor: nn.Module | None = None,
        perceptual: PerceptualLoss | None = None,
        adversarial: GANLoss | None = None,
        schedule: Callable[[int], float] = lambda steps_done: 1.0,
        clip_grad_norm: float | None = None,
        ema_decay: float | None = None,
        precision: str = "fp32",
    ) -> None:
        self.step = 0  # optimisation steps done
        self.generator, self.discriminator = generator, discriminator
        self.extractor, self.perceptual, self.adversarial, self.weights = extractor, perceptual, adversarial, weights
        self.sharpened = sharpened
        self.optimizers = {"generator": generator_optimizer}
        if discriminator is not None:
            self.optimizers["discriminator"] = discriminator_optimizer
        self.base_learning_rates = {name: adam.param_groups[0]["lr"] for name, adam in self.optimizers.items()}
        self.schedule, self.clip_grad_norm = schedule, clip_grad_norm
        self.ema = None
        if ema_decay is not None:
            self.ema = AveragedModel(generator, multi_avg_fn=get_ema_multi_avg_fn(ema_decay))
        device = next(generator.parameters()).device
        self.autocast = partial(
            torch.autocast, device.type, dtype=AUTOCAST_DTYPE[precision], enabled=AUTOCAST_DTYPE[precision] is not None
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.distribute(wrap=lambda network: network, add_up=lambda counts: counts)

    def distribute(self, *, wrap: Callable[[nn.Module], nn.Module], add_up: Callable[[Tensor], Tensor]) -> None:
        """Share the work with other processes.

        Gradients that come through the wrapped networks are averaged over the processes. The generator's step goes
        through the bare discriminator, whose gradients nobody wants.

        Args:
            wrap: makes a DistributedDataParallel of a network.
            add_up: sums a tensor over the processes.
        """
        self._shared_generator = wrap(self.generator)
        self._shared_discriminator = wrap(self.discriminator) if self.discriminator is not None else None
        self._add_up = add_up

    def __call__(self, *batches: Batch, watch: bool = False) -> Outcome:
        """Move G (and D) by one step on the mean gradient of one batch or several.

        If a loss or a gradient is not finite on any process, nothing moves on any of them; the step counts all the
        same. A loss scale (fp16) that was too large for the gradients is lowered, which is not an accident.

        Args:
            batches: every process gives as many.
            watch: measure how much of G's gradient comes from each term of its objective, on the last batch.

        Returns:
            The unweighted terms of both objectives, the norms of both gradients before clipping, and what tells how
            the two networks stand (models.diagnostics).
        """
        torch.compiler.cudagraph_mark_step_begin()  # what the last step left in the memory of CUDA graphs is done with
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        parts = []
        for number, batch in enumerate(batches, start=1):
            last = number == len(batches)
            with self._synchronised(last):
                parts.append(self._backward(batch, part=1 / len(batches), watch=watch and last))
        terms = {name: torch.stack([part[name] for part in parts if name in part]).mean() for name in parts[-1]}
        norms = {f"{name}_gradient": self._gradient_norm(name) for name in self.optimizers}
        losses = {name: terms[name] for name in (*self.weights, "d_loss") if name in terms}
        broken = self._not_finite({**losses, **norms})
        if not broken:
            self._descend(norms)
        elif self.scaler.is_enabled() and self.scaler.get_scale() > 1 and set(broken) <= norms.keys():
            broken = ()
        self.scaler.update()
        self.step += 1
        return Outcome({**terms, **norms}, broken)

    def _backward(self, batch: Batch, *, part: float, watch: bool) -> dict[str, Tensor]:
        """Add `part` of the gradients of both objectives on a batch to those of G and D; return their terms."""
        with self.autocast():
            semantic = self.extractor(batch.hr) if self.extractor is not None else None
        sr, terms = self._generator_backward(batch, semantic, part=part, watch=watch)
        terms |= colour_drift(sr, batch.hr)
        if self.discriminator is not None:
            terms |= self._discriminator_backward(sr, self._target("gan", batch), semantic, part=part)
        return {name: term.detach().float() for name, term in terms.items()}

    def _target(self, term: str, batch: Batch) -> Tensor:
        """What SR is compared with in a term."""
        return batch.sharp if term in self.sharpened else batch.hr

    def _generator_backward(
        self, batch: Batch, semantic: Tensor | None, *, part: float, watch: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        terms = {}
        with self.autocast():
            sr = self._shared_generator(batch.lr).float()
            if "pixel" in self.weights:
                terms["pixel"] = F.l1_loss(sr, self._target("pixel", batch))
            if "perceptual" in self.weights:
                terms["perceptual"] = self.perceptual(sr, self._target("perceptual", batch))
            if "gan" in self.weights:
                self.discriminator.requires_grad_(False)
                target = self._target("gan", batch)
                real = self.discriminator(target, semantic) if self.adversarial.needs_real else None
                terms["gan"] = self.adversarial.generator(self.discriminator(sr, semantic), real)
        weighted = {name: self.scaler.scale(self.weights[name] * term * part) for name, term in terms.items()}
        shares = gradient_shares(weighted, self.generator.parameters()) if watch and len(weighted) > 1 else {}
        sum(weighted.values()).backward()
        return sr.detach(), {**terms, **{f"share_{name}": share for name, share in shares.items()}}

    def _discriminator_backward(
        self, sr: Tensor, hr: Tensor, semantic: Tensor | None, *, part: float
    ) -> dict[str, Tensor]:
        self.discriminator.requires_grad_(True)
        with self.autocast():
            # Real and fake in one batch: one pass, one synchronisation of gradients.
            twice = None if semantic is None else torch.cat((semantic, semantic))
            real, fake = self._shared_discriminator(torch.cat((hr, sr)), twice).chunk(2)
            loss = self.adversarial.discriminator(real, fake)
        self.scaler.scale(loss * part).backward()
        means = {"d_loss": loss, "d_real": real.float().mean(), "d_fake": fake.float().mean()}
        return {**means, **accuracy(real.detach(), fake.detach(), self.adversarial.boundary)}

    def _synchronised(self, last: bool) -> AbstractContextManager:
        """Gradients are averaged over the processes once a step, with those of the last batch."""
        quiet = ExitStack()
        for network in (self._shared_generator, self._shared_discriminator):
            if not last and hasattr(network, "no_sync"):
                quiet.enter_context(network.no_sync())
        return quiet

    def _gradient_norm(self, name: str) -> Tensor:
        self.scaler.unscale_(self.optimizers[name])
        return get_total_norm([p.grad for p in self._parameters(name) if p.grad is not None])

    def _not_finite(self, values: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Names of the values that are not finite here or elsewhere: one reduction, and the one wait for the device."""
        counts = self._add_up((~torch.stack(tuple(values.values())).isfinite()).float())
        return tuple(name for name, count in zip(values, counts.tolist(), strict=True) if count)

    def _descend(self, norms: Mapping[str, Tensor]) -> None:
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate(name)
            if self.clip_grad_norm is not None:
                clip_grads_with_norm_(self._parameters(name), self.clip_grad_norm, norms[f"{name}_gradient"])
            self.scaler.step(optimizer)
        if self.ema is not None:
            self.ema.update_parameters(self.generator)

    def _parameters(self, name: str) -> list[nn.Parameter]:
        return [parameter for group in self.optimizers[name].param_groups for parameter in group["params"]]

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
